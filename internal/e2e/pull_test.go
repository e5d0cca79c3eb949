package e2e

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// A pull whose daemon is killed goes on where it was: what had been verified, or what is kept to be verified, is not fetched
// again. That is all but what was on its way.
func TestPullGoesOnAfterKill(t *testing.T) {
	const rate, onTheWay = 8 << 20, 8 << 20
	noise := make([]byte, 32<<20)
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
			for s.Stats().BytesOf[digest.String()] < size*5/8 {
				time.Sleep(10 * time.Millisecond)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := pull.Wait(); err == nil || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("the pull whose daemon was killed: %v, %q", err, stderr.String())
			}
			before := s.Stats().BytesOf[digest.String()]
			h.must("msb-fs", "pull", ref)
			again := s.Stats().BytesOf[digest.String()] - before
			t.Logf("%.1f of %.1f MB had been sent, then %.1f MB more", float64(before)/1e6, float64(size)/1e6, float64(again)/1e6)
			if again > size-before+onTheWay {
				t.Errorf("%d bytes of %d had been sent when the daemon was killed, and %d after that", before, size, again)
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
