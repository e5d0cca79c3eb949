package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/microsandbox/msb-fs/chunkcache"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/db"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// What fails before its answer has begun answers with an error; afterwards nothing that it says may pass for a whole answer.
func TestFailuresAreNoAnswers(t *testing.T) {
	d := &daemon{Options: Options{Log: slog.New(slog.DiscardHandler)}}
	handlers := map[string]func(http.ResponseWriter, *http.Request) error{
		"before": func(http.ResponseWriter, *http.Request) error { panic("bug") },
		"amid a file": func(w http.ResponseWriter, _ *http.Request) error {
			w.Write([]byte("half of it"))
			panic("bug")
		},
		"amid a stream": func(w http.ResponseWriter, _ *http.Request) error {
			newEvents(w).send(api.Event{Name: api.EventResolved})
			return errors.New("bug")
		},
	}
	for name, fn := range handlers {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { d.answer(w, r, fn) }))
		resp, err := http.Get(s.URL)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode != http.StatusInternalServerError {
			t.Errorf("%s: the answer looks whole, status %d", name, resp.StatusCode)
		}
		if name == "before" && err != nil {
			t.Errorf("%s: %v, want an answer", name, err)
		}
		s.Close()
	}
}

// An upper, and a mount point, can be used again as soon as the unmount has returned.
func TestUnmountIsOver(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.Gzip, "content")
	upper, dir := filepath.Join(t.TempDir(), "upper"), t.TempDir()
	req := api.MountRequest{ImageRequest: api.ImageRequest{Image: ref}, Dir: dir, Upper: upper}
	for range 5 {
		if err := h.client.Stream(context.Background(), "POST", "/v1/mounts", req, func(api.Event) error { return nil }); err != nil {
			t.Fatal(err)
		}
		h.unmount(dir)
	}
}

// The daemon is somewhere else than its callers: a relative path means nothing to it.
func TestRelativePathsAreRefused(t *testing.T) {
	t.Chdir(t.TempDir()) // whatever a daemon that took one would do to it
	h := newHost(t, registry.Options{})
	ref := api.ImageRequest{Image: h.image("app:1", testimage.Gzip, "content")}
	for name, c := range map[string]struct {
		path string
		req  any
	}{
		"mount point":     {"/v1/mounts", api.MountRequest{ImageRequest: ref, Dir: "."}},
		"no mount point":  {"/v1/mounts", api.MountRequest{ImageRequest: ref}},
		"mount's upper":   {"/v1/mounts", api.MountRequest{ImageRequest: ref, Dir: t.TempDir(), Upper: "."}},
		"upper":           {"/v1/diff", api.UpperRequest{Upper: "."}},
		"layout":          {"/v1/commit", api.CommitRequest{UpperRequest: api.UpperRequest{Upper: t.TempDir()}, Layout: "."}},
		"neither of both": {"/v1/commit", api.CommitRequest{UpperRequest: api.UpperRequest{Upper: t.TempDir()}}},
	} {
		if err := h.client.Call(context.Background(), "POST", c.path, c.req, nil); !errors.Is(err, &api.Error{Code: api.CodeInvalid}) {
			t.Errorf("%s: %v, want an invalid request", name, err)
		}
	}
}

// A check of the whole cache ends with whoever asked for it, and does not hold up a daemon that stops.
func TestVerifyEndsWithItsCaller(t *testing.T) {
	store, err := db.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	cache, err := chunkcache.Open(store, t.TempDir(), chunkcache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	data := []byte("content")
	if err := cache.Put(t.Context(), sha256.Sum256(data), data); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(ctx, "POST", "/v1/verify", nil)
	if err := (&daemon{cache: cache}).postVerify(httptest.NewRecorder(), r); !errors.Is(err, context.Canceled) {
		t.Errorf("verify for a caller who has hung up: %v", err)
	}
}
