package remote

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
)

// Whoever waits for a registry that says nothing, or fails, can find out which one and how it failed last.
func TestWaiting(t *testing.T) {
	checkLeaks(t)
	s, c, img := serve(t, registry.Options{}, Options{}, randomBytes(1<<20))
	read := func() chan error {
		done := make(chan error, 1)
		go func() {
			_, err := c.Blob(img, img.Layers[0], Access{}).ReadAt(context.Background(), make([]byte, 1000), 5)
			done <- err
		}()
		return done
	}
	await := func(what string, ok func([]Wait) bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); !ok(c.Waiting(time.Millisecond)); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v", what, c.Waiting(0))
			}
		}
	}
	if w := c.Waiting(0); len(w) != 0 {
		t.Errorf("nobody waits, but %+v", w)
	}
	release := make(chan struct{})
	in := s.Inject(registry.Match{Op: registry.Blob}, registry.Hold(release))
	done := read()
	await("silence", func(w []Wait) bool {
		return len(w) == 1 && w[0].Host == s.Host() && w[0].Last == nil && w[0].Silent > 0
	})
	if w := c.Waiting(time.Hour); len(w) != 0 {
		t.Errorf("%+v is no hour", w)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	in.Remove()
	if w := c.Waiting(0); len(w) != 0 {
		t.Errorf("nobody waits any more, but %+v", w)
	}
	s.Down()
	done = read()
	await("failure", func(w []Wait) bool {
		return len(w) == 1 && w[0].Last != nil && strings.Contains(w[0].Last.Error(), "connection refused")
	})
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
