package e2e

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// A pull whose daemon is killed goes on where it was: what had been verified, or what is kept to be verified, is not fetched
// again. That is all but what was on its way, or waited to be inflated.
func TestPullGoesOnAfterKill(t *testing.T) {
	const rate, slack = 8 << 20, 2 << 20 // bytes per second, and bytes: a block that had no checksum yet, a TOC
	noise := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	for _, form := range testimage.Forms() {
		t.Run(string(form), func(t *testing.T) {
			s := serve(t, registry.Options{Link: registry.NewLink(rate, 0)})
			l, err := testimage.NewLayer(form, testimage.File("f", string(noise)))
			if err != nil {
				t.Fatal(err)
			}
			img, err := testimage.Image(testimage.Config{}, l)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.AddImage("a/b:1", img); err != nil {
				t.Fatal(err)
			}
			digest, err := l.Digest()
			if err != nil {
				t.Fatal(err)
			}
			size, err := l.Size()
			if err != nil {
				t.Fatal(err)
			}
			h := newHome(t)
			ref := s.Host() + "/a/b:1"
			pid := h.daemonPID()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			pull := h.command(ctx, "msb-fs", "pull", ref)
			var stderr bytes.Buffer
			pull.Stderr = &stderr
			if err := pull.Start(); err != nil {
				t.Fatal(err)
			}
			part := filepath.Join(h.dir, "cache", "partial", digest.Hex+".part")
			kept := func() int64 {
				fi, err := os.Stat(part)
				if err != nil {
					return 0
				}
				return fi.Size()
			}
			for kept() < size/2 {
				if ctx.Err() != nil {
					t.Fatal("half of it never came")
				}
				time.Sleep(10 * time.Millisecond)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := pull.Wait(); err == nil || !strings.Contains(stderr.String(), "msb-fs: ") {
				t.Errorf("the pull whose daemon was killed: %v, %q", err, stderr.String())
			}
			was := kept()
			before := s.Stats().BytesOf[digest.String()]
			h.must("msb-fs", "pull", ref)
			again := s.Stats().BytesOf[digest.String()] - before
			t.Logf("%.1f of %.1f MB had been sent and %.1f kept, then %.1f MB more were sent", float64(before)/1e6, float64(size)/1e6, float64(was)/1e6, float64(again)/1e6)
			if again > size-was+slack {
				t.Errorf("%d bytes of %d were kept when the daemon was killed, and %d sent after that", was, size, again)
			}
			s.Down()
			if got := h.must("msb-fs", "cat", "--pull", "never", ref, "/f"); got != string(noise) {
				t.Error("the file is wrong")
			}
		})
	}
}

// daemonPID starts the daemon and says who it is.
func (h *home) daemonPID() int {
	h.t.Helper()
	h.must("msb-fs", "images")
	return h.status().PID
}
