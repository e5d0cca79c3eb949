package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// crowdForms are what the images of a crowd are stored as.
func crowdForms() []testimage.Form {
	return []testimage.Form{testimage.EStargz, testimage.Gzip, testimage.ZstdChunked, testimage.Tar}
}

// crowdImages puts images of a hundred files each into s, of all forms, with half of their files in common. It returns their
// references and what they hold.
func crowdImages(t *testing.T, s *registry.Server, n int) (refs []string, want []map[string][32]byte) {
	t.Helper()
	for i := range n {
		var entries []testimage.Entry
		sums := map[string][32]byte{}
		for k := range 100 {
			own := i
			if k%2 == 0 {
				own = 0
			}
			name, body := fmt.Sprintf("d%d/e%d/f%d", k%5, k%3, k), bytes.Repeat(fmt.Appendf(nil, "%d of %d\n", k, own), 100+k*k)
			entries = append(entries, testimage.File(name, string(body)), testimage.Symlink(fmt.Sprintf("d%d/s%d", k%5, k), fmt.Sprintf("e%d/f%d", k%3, k)))
			sums[name] = sha256.Sum256(body)
		}
		l, err := testimage.NewLayer(crowdForms()[i%len(crowdForms())], entries...)
		if err != nil {
			t.Fatal(err)
		}
		img, err := testimage.Image(testimage.Config{}, l)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("test/crowd%d", i)
		if _, err := s.AddImage(name, img); err != nil {
			t.Fatal(err)
		}
		refs, want = append(refs, s.Host()+"/"+name), append(want, sums)
	}
	return refs, want
}

// checkCrowd reads everything of a mount.
func checkCrowd(at string, want map[string][32]byte) error {
	files := 0
	err := filepath.WalkDir(at, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Dir(p) == at { // what eStargz adds
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		files++
		if rel, _ := filepath.Rel(at, p); sha256.Sum256(b) != want[rel] {
			return fmt.Errorf("%s has %d other bytes", p, len(b))
		}
		return nil
	})
	if err == nil && files != len(want) {
		err = fmt.Errorf("%s shows %d files, not %d", at, files, len(want))
	}
	return err
}

// TestCrowdOfMounts has one daemon mount a hundred directories of ten images at once, with readers on all of them while the
// kernel forgets everything time and again.
func TestCrowdOfMounts(t *testing.T) {
	needRoot(t)
	const images, mounts = 10, 100
	s := serve(t, registry.Options{})
	refs, want := crowdImages(t, s, images)
	top := t.TempDir() // before the home, by whose end everything is unmounted
	h := newHome(t)
	before := h.memory()
	dirs := make([]string, mounts)
	var crowd sync.WaitGroup
	turn := make(chan struct{}, 8) // commands at a time
	for i := range dirs {
		dirs[i] = filepath.Join(top, strconv.Itoa(i))
		if err := os.Mkdir(dirs[i], 0o755); err != nil {
			t.Fatal(err)
		}
		crowd.Go(func() {
			turn <- struct{}{}
			o := h.fs("mount", "--insecure", refs[i%images], dirs[i])
			<-turn
			if o.code != 0 {
				t.Errorf("mount: %v", o)
				return
			}
			if err := checkCrowd(dirs[i], want[i%images]); err != nil {
				t.Error(err)
			}
		})
	}
	crowd.Wait()
	if t.Failed() {
		return
	}
	var ended atomic.Bool
	var storm sync.WaitGroup
	storm.Go(func() {
		for n := 0; n < 20 && !ended.Load(); n++ { // not without end: everybody's caches go
			unix.Sync()
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range dirs {
		crowd.Go(func() {
			if err := checkCrowd(dirs[i], want[i%images]); err != nil {
				t.Error(err)
			}
		})
	}
	crowd.Wait()
	ended.Store(true)
	storm.Wait()
	h.bounded(before, mounts)
	h.must("msb-fs", append([]string{"umount"}, dirs...)...)
}

// bounded checks what n mounts take of the daemon's memory, and that it says so itself.
func (h *home) bounded(before int64, n int) {
	h.t.Helper()
	const each, all = 1 << 20, 200 << 20 // what a further mount may take, and what an image's readers
	after := h.memory()
	h.t.Logf("%d mounts take %d KiB of memory, and %d threads are there", n, (after-before)>>10, h.threads())
	if after-before > all+int64(n)*each {
		h.t.Errorf("%d mounts take %d bytes of memory", n, after-before)
	}
	var stats struct {
		RSS    int64 `json:"rss"`
		Mounts []struct {
			Name string `json:"name"`
		} `json:"mounts"`
	}
	if err := json.Unmarshal([]byte(h.must("msb-fs", "stats", "--json")), &stats); err != nil {
		h.t.Fatal(err)
	}
	if len(stats.Mounts) != n || stats.RSS < after {
		h.t.Errorf("stats says %d mounts, %d bytes, where %d bytes are the daemon's alone", len(stats.Mounts), stats.RSS, after)
	}
}

// memory is what the daemon has of memory that it shares with nobody, bytes.
func (h *home) memory() int64 { return h.number("RssAnon:") << 10 }

// threads is how many the daemon has.
func (h *home) threads() int64 { return h.number("Threads:") }

// number is a number of the daemon's /proc/PID/status.
func (h *home) number(key string) int64 {
	h.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.daemonPID()))
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				h.t.Fatal(err)
			}
			return n
		}
	}
	h.t.Fatal(errors.New(key + " is not in the daemon's status"))
	return 0
}
