package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// What does not end holds up neither the other tasks' ends nor the daemon's for ever, and is named.
func TestTasksAreWaitedForWithinBounds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ts := &tasks{ctx: ctx, log: slog.New(slog.DiscardHandler)}
	release := make(chan struct{})
	ts.run("good", func(ctx context.Context) { <-ctx.Done() })
	ts.run("stuck", func(context.Context) { <-release })
	ts.run("bug", func(context.Context) { panic("bug") })
	cancel()
	for {
		left := ts.wait(10 * time.Millisecond)
		if len(left) == 1 && left[0] == "stuck" {
			break
		}
		if len(left) == 0 {
			t.Fatal("a task that has not ended is not waited for")
		}
	}
	close(release)
	if left := ts.wait(time.Hour); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if left := ts.wait(time.Hour); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A daemon that a request does not let go of ends all the same, and says so; its home stays locked until its process ends.
func TestStopDespiteStuckRequest(t *testing.T) {
	release, entered := make(chan struct{}), make(chan struct{})
	d := &daemon{Options: Options{Log: slog.New(slog.DiscardHandler), StopPatience: 50 * time.Millisecond}, mounts: &mounts{},
		tasks: &tasks{ctx: t.Context(), log: slog.New(slog.DiscardHandler)}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.answer(w, r, func(http.ResponseWriter, *http.Request) error {
			close(entered)
			<-release
			return nil
		})
	}))
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if resp, err := http.Get(s.URL); err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	if err := d.end(t.Context(), s.Config); !errors.Is(err, ErrStuck) {
		t.Errorf("stopped with %v", err)
	}
	close(release)
	<-asked
	s.Close()
}

// panicky panics when something is written to it for the nth time.
type panicky struct {
	*httptest.ResponseRecorder
	left int
}

func (p *panicky) Write(b []byte) (int, error) {
	if p.left--; p.left < 0 {
		panic("bug")
	}
	return p.ResponseRecorder.Write(b)
}

// Wherever a handler panics, it gives back what it took, and its answer is no success.
func TestPanicLeaksNothing(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.EStargz, "content")
	h.mustPull(ref)
	d := h.daemon
	dir := t.TempDir()
	body := map[string]string{
		"/v1/mounts":     `{"image":"` + ref + `","dir":"` + dir + `","upper":"` + t.TempDir() + `"}`,
		"/v1/pull":       `{"image":"` + ref + `"}`,
		"/v1/inspect":    `{"image":"` + ref + `"}`,
		"/v1/files/cat":  `{"image":"` + ref + `","path":"/f"}`,
		"/v1/files/list": `{"image":"` + ref + `","path":"/"}`,
		"/v1/sandboxes":  `{"image":"` + ref + `","id":"s1","upper":"` + t.TempDir() + `"}`,
	}
	for path, req := range body {
		for n := range 3 {
			w := &panicky{httptest.NewRecorder(), n}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second) // a sandbox waits for its VM
			hungUp := panics(func() {
				d.handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, "POST", path, strings.NewReader(req)))
			})
			cancel()
			if w.left >= 0 {
				continue // that was the whole answer
			}
			if !hungUp && w.Code < 400 {
				t.Errorf("%s, panic at write %d: status %d", path, n, w.Code)
			}
			for _, m := range d.mounts.list() {
				h.unmount(m.Dir)
			}
			d.tasks.drain(t)
			// A task may start another one when it ends.
			for deadline := time.Now().Add(time.Minute); len(d.images.byDigest()) > 0 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			if open := d.images.byDigest(); len(open) > 0 || len(d.sandboxes.list()) > 0 || len(d.mounts.byDir) > 0 || d.requests.Load() > 0 {
				t.Errorf("%s, panic at write %d: left: %d images, %d sandboxes, %d mounts", path, n, len(open), len(d.sandboxes.list()), len(d.mounts.byDir))
			}
		}
	}
	h.wantCat(ref, "/f", "", "content")
}

// drain waits until only the watch for idleness is left.
func (ts *tasks) drain(t *testing.T) {
	for len(ts.list()) > 1 && t.Context().Err() == nil {
		time.Sleep(time.Millisecond)
	}
}

func panics(fn func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	fn()
	return false
}

// A layer that is still closing may write its index: nobody removes what is unused until it is closed.
func TestNothingIsRemovedWhileALayerCloses(t *testing.T) {
	h := newHost(t, registry.Options{})
	im := h.daemon.images
	ref := h.image("app:1", testimage.Gzip, "content")
	h.mustPull(ref)
	h.daemon.tasks.drain(t)
	o, err := h.daemon.openImage(t.Context(), api.ImageRequest{Image: ref})
	if err != nil {
		t.Fatal(err)
	}
	if err := im.lockSpace(t.Context()); err != nil {
		t.Fatal(err)
	}
	released := make(chan error, 1)
	go func() { released <- im.release(o) }()
	time.Sleep(20 * time.Millisecond)
	if im.byDigest()[o.Digest] == nil {
		t.Error("an image was closed while unused layers were being removed")
	}
	im.space.Unlock()
	if err := <-released; err != nil {
		t.Error(err)
	}
	if im.byDigest()[o.Digest] != nil {
		t.Error("the image is still open")
	}
}

// One reference can be pulled for several platforms: what has been removed says which.
func TestPruneSaysPlatforms(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.Gzip, "content")
	for _, platform := range []string{"", "linux/amd64"} {
		if _, err := h.pull(api.PullRequest{ImageRequest: api.ImageRequest{Image: ref, Access: api.Access{Platform: platform}}}); err != nil {
			t.Fatal(err)
		}
	}
	h.daemon.tasks.drain(t)
	var freed api.Freed
	if err := h.client.Call(t.Context(), "POST", "/v1/prune", api.PruneRequest{All: true}, &freed); err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, r := range freed.Images {
		said = append(said, r.String())
	}
	if got, want := strings.Join(said, "; "), ref+"; "+ref+" (linux/amd64)"; got != want {
		t.Errorf("removed %q, want %q", got, want)
	}
	if left, _ := os.ReadDir(h.home.Cache("layers")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
