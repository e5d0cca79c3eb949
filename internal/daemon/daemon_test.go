package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// noise is n bytes that do not compress, always the same.
func noise(n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return string(b)
}

// host is a daemon with a home of its own, and a registry.
type host struct {
	*testing.T
	home     api.Home
	daemon   *daemon
	client   *api.Client
	registry *registry.Server
	stop     context.CancelFunc
	done     chan error
}

func newHost(t *testing.T, o registry.Options) *host {
	t.Helper()
	s, err := registry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	home, err := os.MkdirTemp("", "msb") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	h := &host{T: t, home: api.Home(home), registry: s}
	h.start(Options{})
	t.Cleanup(h.end)
	return h
}

// start runs a daemon until end, and returns when it answers.
func (h *host) start(o Options) {
	h.Helper()
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.done = stop, make(chan error, 1)
	var err error
	if h.daemon, err = open(ctx, stop, h.home, o); err != nil {
		stop()
		h.Fatal(err)
	}
	go func() { h.done <- h.daemon.run(ctx) }()
	for {
		if c, ok := api.Running(ctx, h.home); ok {
			h.client = c
			return
		}
		select {
		case err := <-h.done:
			h.Fatalf("daemon: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

func (h *host) end() {
	h.Helper()
	h.client.Close()
	h.stop()
	if err := <-h.done; err != nil && !errors.Is(err, context.Canceled) {
		h.Errorf("daemon: %v", err)
	}
	h.done <- nil // for a second end
}

// image puts an image of one layer of that form, with the file /f, into the registry and returns its reference.
func (h *host) image(name string, form testimage.Form, content string) string {
	h.Helper()
	return h.add(name, layerOf(h, form, testimage.Dir("d", 0o755), testimage.File("f", content)))
}

func layerOf(h *host, form testimage.Form, entries ...testimage.Entry) *testimage.Layer {
	h.Helper()
	l, err := testimage.NewLayer(form, entries...)
	if err != nil {
		h.Fatal(err)
	}
	return l
}

func (h *host) add(name string, layers ...*testimage.Layer) string {
	h.Helper()
	img, err := testimage.Image(testimage.Config{}, layers...)
	if err != nil {
		h.Fatal(err)
	}
	if _, err := h.registry.AddImage(name, img); err != nil {
		h.Fatal(err)
	}
	return h.registry.Host() + "/" + name
}

func (h *host) cat(ref, path, pull string) (string, error) {
	h.Helper()
	req := api.FileRequest{ImageRequest: api.ImageRequest{Image: ref, Pull: pull}, Path: path}
	body, trailer, err := h.client.Raw(context.Background(), "POST", "/v1/files/cat", req)
	if err != nil {
		return "", err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if err == nil {
		err = trailer()
	}
	return string(b), err
}

func (h *host) wantCat(ref, path, pull, want string) {
	h.Helper()
	if got, err := h.cat(ref, path, pull); err != nil || got != want {
		h.Fatalf("cat %s with policy %s: %q, %v, want %q", path, pull, got, err, want)
	}
}

func (h *host) pull(req api.PullRequest) (digest string, err error) {
	h.Helper()
	err = h.client.Stream(context.Background(), "POST", "/v1/pull", req, func(e api.Event) error {
		if e.Image != nil {
			digest = e.Image.Digest
		}
		return nil
	})
	return digest, err
}

func (h *host) mustPull(ref string) (digest string) {
	h.Helper()
	digest, err := h.pull(api.PullRequest{ImageRequest: api.ImageRequest{Image: ref}})
	if err != nil {
		h.Fatal(err)
	}
	return digest
}

func TestPullPolicies(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.Gzip, "one")
	if _, err := h.cat(ref, "/f", api.PullNever); !errors.Is(err, &api.Error{Code: api.CodeNotCached}) || err.Error() != "image not cached: "+ref {
		t.Errorf("never, not cached: %v", err)
	}
	first := h.mustPull(ref)
	h.registry.ResetLog()
	h.wantCat(ref, "/f", api.PullIfMissing, "one")
	h.wantCat(ref, "/f", api.PullNever, "one")
	if n := len(h.registry.Requests()); n != 0 {
		t.Errorf("a cached image cost %d requests: %v", n, h.registry.Requests())
	}
	h.wantCat(ref, "/f", api.PullAlways, "one")
	if n := len(h.registry.Requests()); n != 1 {
		t.Errorf("revalidating an image cost %d requests, want 1: %v", n, h.registry.Requests())
	}
	h.image("app:1", testimage.Gzip, "two") // the tag moves
	h.wantCat(ref, "/f", api.PullIfMissing, "one")
	h.wantCat(ref, "/f", api.PullAlways, "two")
	h.wantCat(ref, "/f", api.PullIfMissing, "two")

	h.registry.Down()
	h.wantCat(ref, "/f", api.PullIfMissing, "two")
	second := h.mustPull(ref)
	_, err := h.cat(ref, "/f", api.PullAlways)
	if !errors.Is(err, &api.Error{Code: api.CodeUnreachable}) || !strings.Contains(err.Error(), second) || !strings.Contains(err.Error(), "--pull if-missing") {
		t.Errorf("always, registry down: %v; want it to name %s and the way out", err, second)
	}
	if first == second {
		t.Error("the tag has not moved")
	}
}

func TestCachedImageOutlivesDaemonAndRegistry(t *testing.T) {
	h := newHost(t, registry.Options{})
	for _, form := range testimage.Forms() {
		ref := h.image("app:"+string(form), form, string(form))
		h.mustPull(ref)
	}
	h.end()
	<-h.done
	h.registry.Down()
	h.start(Options{})
	for _, form := range testimage.Forms() {
		h.wantCat(h.registry.Host()+"/app:"+string(form), "/f", api.PullIfMissing, string(form))
	}
}

// A layer whose bytes are not what its digest says is an error that says so, and leaves nothing that a later try trusts.
func TestCorruptLayer(t *testing.T) {
	for _, form := range []testimage.Form{testimage.Gzip, testimage.EStargz} {
		t.Run(string(form), func(t *testing.T) {
			h := newHost(t, registry.Options{})
			content := noise(1 << 20)
			bad := layerOf(h, form, testimage.File("f", content))
			ref := h.add("app:1", bad)
			digest, err := bad.Digest()
			if err != nil {
				t.Fatal(err)
			}
			in := h.registry.Inject(registry.Match{Op: registry.Blob, Ref: digest.String()}, registry.FlipByte(1<<19))
			if _, err := h.pull(api.PullRequest{ImageRequest: api.ImageRequest{Image: ref}}); err == nil {
				t.Fatal("a pull of wrong bytes succeeded")
			} else {
				t.Log(err)
			}
			in.Remove()
			if got, err := h.cat(ref, "/f", api.PullIfMissing); err != nil || got != content {
				t.Errorf("once the registry is honest again: %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestRemoveAndPrune(t *testing.T) {
	h := newHost(t, registry.Options{})
	shared := layerOf(h, testimage.Gzip, testimage.File("base", "base"))
	a := h.add("a:1", shared, layerOf(h, testimage.Gzip, testimage.File("f", "a")))
	b := h.add("b:1", shared, layerOf(h, testimage.Gzip, testimage.File("f", "b")))
	h.mustPull(a)
	h.mustPull(b)
	var freed api.Freed
	if err := h.client.Call(context.Background(), "DELETE", "/v1/images?ref="+a, nil, &freed); err != nil {
		t.Fatal(err)
	}
	if _, err := h.cat(a, "/f", api.PullNever); !errors.Is(err, &api.Error{Code: api.CodeNotCached}) {
		t.Errorf("a removed image: %v", err)
	}
	h.registry.Down()
	h.wantCat(b, "/f", api.PullNever, "b") // what it shared with the other is still there
	h.wantCat(b, "/base", api.PullNever, "base")
	if err := h.client.Call(context.Background(), "POST", "/v1/prune", api.PruneRequest{}, &freed); err != nil || len(freed.Images) != 0 {
		t.Fatalf("prune: %+v, %v", freed, err)
	}
	h.wantCat(b, "/f", api.PullNever, "b")
	if err := h.client.Call(context.Background(), "POST", "/v1/prune", api.PruneRequest{All: true}, &freed); err != nil || len(freed.Images) != 1 || freed.Images[0].String() != b {
		t.Fatalf("prune --all: %+v, %v", freed, err)
	}
	for _, dir := range []string{"layers", "trees"} {
		if left, _ := os.ReadDir(h.home.Cache(dir)); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

// One machine's first pull makes the next one's first start lazy.
func TestPublishedIndex(t *testing.T) {
	first := newHost(t, registry.Options{})
	big := strings.Repeat("0123456789abcdef", 1<<16)
	ref := first.add("app:1", layerOf(first, testimage.Gzip, testimage.File("noise", noise(8<<20)), testimage.File("f", "found"), testimage.File("big", big)))
	first.mustPull(ref)
	var pushed []api.PushedIndex
	if err := first.client.Call(context.Background(), "POST", "/v1/index/push", api.IndexRequest{ImageRequest: api.ImageRequest{Image: ref}}, &pushed); err != nil {
		t.Fatal(err)
	}
	if len(pushed) != 1 || pushed[0].Layers != 1 {
		t.Fatalf("pushed %+v", pushed)
	}
	home, err := os.MkdirTemp("", "msb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	second := &host{T: t, home: api.Home(home), registry: first.registry}
	second.start(Options{})
	t.Cleanup(second.end)
	second.wantCat(ref, "/f", api.PullIfMissing, "found")
	var img api.Image
	if err := second.client.Call(context.Background(), "POST", "/v1/inspect", api.ImageRequest{Image: ref}, &img); err != nil {
		t.Fatal(err)
	}
	if img.Layers[0].Mode != "lazy-index" {
		t.Errorf("the layer is served as %s: %s", img.Layers[0].Mode, img.Layers[0].Reason)
	}
	var stats api.Stats
	if err := second.client.Call(context.Background(), "GET", "/v1/stats", nil, &stats); err != nil {
		t.Fatal(err)
	}
	if stats.BytesFetched > img.Size/2 {
		t.Errorf("fetched %d of %d bytes for one small file", stats.BytesFetched, img.Size)
	}
}

// mount mounts ref on a new directory, with upper over it if that is not "", until the test ends.
func (h *host) mount(ref, upper string) (dir string) {
	h.Helper()
	dir = h.TempDir()
	req := api.MountRequest{ImageRequest: api.ImageRequest{Image: ref}, Dir: dir, Upper: upper}
	if err := h.client.Stream(context.Background(), "POST", "/v1/mounts", req, func(api.Event) error { return nil }); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { fs.Unmount(context.Background(), dir) })
	return dir
}

func (h *host) unmount(dir string) {
	h.Helper()
	if err := h.client.Call(context.Background(), "DELETE", "/v1/mounts?dir="+dir, nil, nil); err != nil {
		h.Fatal(err)
	}
}

func TestMounts(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.Gzip, "content")
	a, b := h.mount(ref, ""), h.mount(ref, "")
	for _, dir := range []string{a, b} {
		if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got) != "content" {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(a, "new"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing to a mount without an upper: %v", err)
	}
	var mounts []api.Mount
	if err := h.client.Call(context.Background(), "GET", "/v1/mounts", nil, &mounts); err != nil || len(mounts) != 2 {
		t.Errorf("mounts: %+v, %v", mounts, err)
	}
	h.unmount(a)
	if _, err := os.Stat(filepath.Join(a, "f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the unmount: %v", err)
	}
	h.end() // stopping unmounts
	<-h.done
	h.done <- nil
	if _, err := os.Stat(filepath.Join(b, "f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the daemon stopped: %v", err)
	}
}

func TestDiffAndCommit(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.Gzip, "content")
	upper := filepath.Join(t.TempDir(), "upper")
	dir := h.mount(ref, upper)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o640), os.Remove(filepath.Join(dir, "d")),
		os.WriteFile(filepath.Join(dir, "f"), []byte("changed"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.client.Raw(context.Background(), "POST", "/v1/diff", api.UpperRequest{Upper: upper}); err == nil {
		t.Error("an upper in use was opened a second time")
	}
	h.unmount(dir)
	body, trailer, err := h.client.Raw(context.Background(), "POST", "/v1/diff", api.UpperRequest{Upper: upper})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if err = errors.Join(err, trailer()); err != nil {
		t.Fatal(err)
	}
	changes := string(b)
	want := `{"path":"/","kind":"changed"}` + "\n" + `{"path":"/d","kind":"deleted"}` + "\n" + `{"path":"/f","kind":"changed"}` + "\n" + `{"path":"/new","kind":"added"}` + "\n"
	if changes != want {
		t.Errorf("diff:\n%swant:\n%s", changes, want)
	}

	made := h.registry.Host() + "/made:1"
	var pushed, written api.Committed
	req := api.CommitRequest{UpperRequest: api.UpperRequest{Upper: upper}, Reference: made}
	if err := h.client.Call(context.Background(), "POST", "/v1/commit", req, &pushed); err != nil {
		t.Fatal(err)
	}
	h.wantCat(made, "/new", "", "new")
	h.wantCat(made, "/f", "", "changed")
	if _, err := h.cat(made, "/d", ""); !errors.Is(err, &api.Error{Code: api.CodeNotFound}) {
		t.Errorf("what was deleted: %v", err)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	req = api.CommitRequest{UpperRequest: api.UpperRequest{Upper: upper}, Layout: layout, Tag: "made"}
	if err := h.client.Call(context.Background(), "POST", "/v1/commit", req, &written); err != nil {
		t.Fatal(err)
	}
	if pushed != written {
		t.Errorf("the same content made %s and %s", pushed.Digest, written.Digest)
	}
	unpacked := filepath.Join(t.TempDir(), "bundle")
	if out, err := exec.Command("umoci", "unpack", "--image", layout+":made", unpacked).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v: %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(unpacked, "rootfs", "f")); err != nil || string(got) != "changed" {
		t.Errorf("umoci's /f: %q, %v", got, err)
	}
	if _, err := os.Lstat(filepath.Join(unpacked, "rootfs", "d")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("umoci's /d: %v", err)
	}
}

func TestIdleDaemonStops(t *testing.T) {
	h := newHost(t, registry.Options{})
	h.end()
	<-h.done
	h.start(Options{IdleTimeout: 50 * time.Millisecond})
	if err := <-h.done; err != nil {
		t.Errorf("idle daemon: %v", err)
	}
	h.done <- nil
	if _, err := os.Stat(filepath.Join(string(h.home), "run", "daemon.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket: %v, want none", err)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	h := newHost(t, registry.Options{})
	err := Run(context.Background(), h.home, Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err == nil || !strings.Contains(err.Error(), "another msb-fs daemon") {
		t.Errorf("second daemon: %v", err)
	}
}

func TestPlatforms(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.Gzip, "x")
	req := api.ImageRequest{Image: ref, Access: api.Access{Platform: "linux/s390x"}}
	if _, err := h.pull(api.PullRequest{ImageRequest: req}); err == nil {
		t.Error("an image of another platform was pulled")
	}
}
