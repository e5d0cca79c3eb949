package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// crashes is how often TestDaemonKilledAtRandom kills when MSB_CRASHES does not say.
const crashes = 20

// TestDaemonKilledAtRandom kills the daemon at any moment while commands pull, read, mount and remove images, again and
// again over one home. No command may ever show a wrong byte, none may fail for a reason other than the kill, and after each kill
// the cache has nothing wrong in it.
func TestDaemonKilledAtRandom(t *testing.T) {
	needRoot(t)
	rounds := crashes
	if s := os.Getenv("MSB_CRASHES"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := serve(t, registry.Options{Link: registry.NewLink(24<<20, time.Millisecond)})
	images, files := crashImages(t, s)
	h := newHome(t)
	for round := range rounds {
		h.crash(r, images, files)
		var v struct{ Wrong int64 }
		if err := json.Unmarshal([]byte(h.must("msb-fs", "verify", "--format", "json")), &v); err != nil {
			t.Fatal(err)
		}
		if v.Wrong != 0 {
			t.Errorf("round %d: %d chunks are wrong after the kill", round, v.Wrong)
		}
		h.checkFile(images[r.IntN(len(images))], files, r.IntN(len(files)))
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	for _, ref := range images {
		for i := range files {
			h.checkFile(ref, files, i)
		}
	}
}

// crashFile is a file that all images have.
type crashFile struct{ name, content string }

// crashImages puts images of several forms with the same files into s.
func crashImages(t *testing.T, s *registry.Server) (refs []string, files []crashFile) {
	t.Helper()
	noise := rand.NewChaCha8([32]byte{7})
	for i := range 40 {
		b := make([]byte, 1+i*i*300)
		noise.Read(b)
		files = append(files, crashFile{fmt.Sprintf("dir%d/file%d", i%4, i), string(b)})
	}
	for _, form := range []testimage.Form{testimage.Gzip, testimage.Zstd, testimage.EStargz} {
		var layers []*testimage.Layer
		for from := 0; from < len(files); from += 20 {
			var entries []testimage.Entry
			for i := range 4 {
				entries = append(entries, testimage.Dir(fmt.Sprintf("dir%d", i), 0o755))
			}
			for _, f := range files[from : from+20] {
				entries = append(entries, testimage.File(f.name, f.content))
			}
			l, err := testimage.NewLayer(form, entries...)
			if err != nil {
				t.Fatal(err)
			}
			layers = append(layers, l)
		}
		img, err := testimage.Image(testimage.Config{}, layers...)
		if err != nil {
			t.Fatal(err)
		}
		name := "crash/app:" + string(form)
		if _, err := s.AddImage(name, img); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, s.Host()+"/"+name)
	}
	return refs, files
}

// crash runs commands beside each other and kills the daemon amid them.
func (h *home) crash(r *rand.Rand, images []string, files []crashFile) {
	h.t.Helper()
	pid := h.daemonPID()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	killed := make(chan struct{})
	var wg sync.WaitGroup
	for worker := range 3 {
		own := rand.New(rand.NewPCG(r.Uint64(), uint64(worker)))
		wg.Go(func() {
			for {
				select {
				case <-killed:
					return
				default:
				}
				h.crashStep(ctx, own, images, files, killed)
			}
		})
	}
	time.Sleep(time.Duration(r.IntN(900)) * time.Millisecond)
	close(killed)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		h.t.Errorf("kill the daemon: %v", err)
	}
	wg.Wait()
	h.umountLeft()
}

// crashStep is one command of the load.
func (h *home) crashStep(ctx context.Context, r *rand.Rand, images []string, files []crashFile, killed <-chan struct{}) {
	ref, f := images[r.IntN(len(images))], files[r.IntN(len(files))]
	var args []string
	switch r.IntN(10) {
	case 0:
		args = []string{"pull", ref}
	case 1:
		args = []string{"rmi", ref}
	case 2:
		args = []string{"prune", "--chunks"}
	case 3:
		h.crashMount(ctx, ref, f)
		return
	default:
		args = []string{"cat", ref, "/" + f.name}
	}
	cmd := h.command(ctx, "msb-fs", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		h.t.Errorf("%v hung", args)
	case err == nil && args[0] == "cat" && stdout.String() != f.content:
		h.t.Errorf("%v shows %d other bytes than the %d of the file", args, stdout.Len(), len(f.content))
	case err != nil && args[0] != "rmi" && !strings.Contains(stderr.String(), "in use"):
		select {
		case <-killed:
		case <-time.After(2 * time.Second): // the kill may be what failed it
			h.t.Errorf("%v: %v: %s", args, err, stderr.String())
		}
	}
}

// crashMount mounts ref, reads f and unmounts. Each of these may fail, but no byte may be wrong.
func (h *home) crashMount(ctx context.Context, ref string, f crashFile) {
	dir, err := os.MkdirTemp(h.dir, "mnt")
	if err != nil {
		h.t.Error(err)
		return
	}
	if h.command(ctx, "msb-fs", "mount", "--ro", ref, dir).Run() != nil {
		return
	}
	// By another process: this one must not hang on a mount whose daemon dies.
	if got, err := exec.CommandContext(ctx, "cat", filepath.Join(dir, f.name)).Output(); err == nil && string(got) != f.content {
		h.t.Errorf("%s in a mount of %s has %d other bytes than its %d", f.name, ref, len(got), len(f.content))
	}
	_ = h.command(ctx, "msb-fs", "umount", dir).Run()
}

// checkFile reads a file, which has to be right.
func (h *home) checkFile(ref string, files []crashFile, i int) {
	h.t.Helper()
	if o := h.fs("cat", ref, "/"+files[i].name); o.code != 0 || o.stdout != files[i].content {
		h.t.Errorf("cat %s %s: exit status %d, %d bytes for %d: %.500s", ref, files[i].name, o.code, len(o.stdout), len(files[i].content), o.stderr)
	}
}

// umountLeft has the next daemon clean up what the killed one had mounted, and unmounts what was mounted since.
func (h *home) umountLeft() {
	h.t.Helper()
	h.must("msb-fs", "images")
	left, err := os.ReadFile("/proc/mounts")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(left)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], h.dir+"/mnt") {
			h.must("msb-fs", "umount", f[1])
		}
	}
}
