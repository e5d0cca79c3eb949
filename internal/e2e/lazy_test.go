package e2e

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// timing is what --timing-json leaves.
type timing struct {
	Events []struct {
		Name         string  `json:"name"`
		MS           float64 `json:"ms"`
		BytesFetched int64   `json:"bytes_fetched"`
	} `json:"events"`
	ImageBytes int64 `json:"image_bytes"`
	Layers     []struct {
		Mode string `json:"mode"`
	} `json:"layers"`
}

func (tm timing) ms(t *testing.T, name string) float64 {
	t.Helper()
	for _, e := range tm.Events {
		if e.Name == name {
			return e.MS
		}
	}
	t.Fatalf("no event %q in %+v", name, tm.Events)
	return 0
}

// timed runs an image with --timing-json.
func (h *home) timed(ref string, args ...string) (string, timing) {
	h.t.Helper()
	file := filepath.Join(h.dir, "timing.json")
	out := h.must("msb-launch", append([]string{"run", "--insecure", "--timing-json", file, ref}, args...)...)
	b, err := os.ReadFile(file)
	if err != nil {
		h.t.Fatal(err)
	}
	var tm timing
	if err := json.Unmarshal(b, &tm); err != nil {
		h.t.Fatal(err)
	}
	return out, tm
}

// slowLink is what users far from a registry have: 100 Mbit/s and 20 ms.
func slowLink() *registry.Link { return registry.NewLink(100e6/8, 20*time.Millisecond) }

// TestColdEStargzIsLazy runs a Python program from an empty home: it prints having fetched at most 35 % of its image, as
// the timeline says and as the registry counts, and the rest comes afterwards.
func TestColdEStargzIsLazy(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{Link: slowLink()})
	ref, _ := pythonImage(t, s, testimage.EStargz)
	h := newHome(t)
	out, tm := h.timed(ref)
	if !strings.HasPrefix(out, "hello from Python") {
		t.Errorf("it printed %q", out)
	}
	for _, l := range tm.Layers {
		if l.Mode != "lazy-toc" && l.Mode != "full" { // full: the rest has come by the end of the command

			t.Errorf("a layer was %s", l.Mode)
		}
	}
	for _, e := range tm.Events {
		if e.Name == "first output" && e.BytesFetched*100 > tm.ImageBytes*35 {
			t.Errorf("%d of %d bytes were fetched before the first output", e.BytesFetched, tm.ImageBytes)
		}
	}
	tm.ms(t, "first output")
	h.waitComplete()
	if got := s.Stats().Bytes; got < tm.ImageBytes || got > tm.ImageBytes*12/10 {
		t.Errorf("%d bytes were sent in the end, of an image of %d", got, tm.ImageBytes)
	}
}

// TestColdGzipIsStreamed runs the same from plain gzip that nobody has seen: the output comes at most one boot after the
// image's last byte, which is when a pull would begin to unpack.
func TestColdGzipIsStreamed(t *testing.T) {
	needVM(t)
	link := slowLink()
	s := serve(t, registry.Options{Link: link})
	ref, _ := pythonImage(t, s, testimage.Gzip)
	h := newHome(t)
	begin := time.Now()
	out, tm := h.timed(ref)
	if !strings.HasPrefix(out, "hello from Python") {
		t.Errorf("it printed %q", out)
	}
	for _, l := range tm.Layers {
		if l.Mode != "streaming" && l.Mode != "full" {
			t.Errorf("a layer was %s", l.Mode)
		}
	}
	var last time.Time
	for _, r := range s.Requests(registry.Blob) {
		if end := r.Time.Add(r.Duration); end.After(last) {
			last = end
		}
	}
	// The program takes its own time too, under emulation the longest part: what a warm run takes from the agent's start.
	h.waitComplete()
	_, warm := h.timed(ref)
	boot := warm.ms(t, "first output")
	after := tm.ms(t, "first output") - float64(last.Sub(begin).Milliseconds())
	t.Logf("first output %.1f s after the last byte; a warm start takes %.1f s", after/1000, boot/1000)
	if after > 1.5*boot {
		t.Errorf("first output %.1f s after the last byte; a warm start takes %.1f s", after/1000, boot/1000)
	}
}

// TestEarlyFileOfAStream asks for a file that a big layer shows early: it comes long before the layer has.
func TestEarlyFileOfAStream(t *testing.T) {
	link := slowLink()
	s := serve(t, registry.Options{Link: link})
	const padding = 200 << 20
	noise := rand.NewChaCha8([32]byte{1})
	dir := t.TempDir()
	path := filepath.Join(dir, "base.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	err = testimage.WriteTar(f, testimage.Dir("etc", 0o755), testimage.File("etc/debian_version", "12.0\n"),
		testimage.Stream("padding", padding, noise))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	base, err := testimage.FileLayer(testimage.Gzip, path, dir)
	if err != nil {
		t.Fatal(err)
	}
	top, err := testimage.NewLayer(testimage.Gzip, testimage.File("app", "small\n"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Image(testimage.Config{}, base, top, top)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddImage("test/padded", img); err != nil {
		t.Fatal(err)
	}
	h := newHome(t)
	if out := h.must("msb-fs", "cat", "--insecure", s.Host()+"/test/padded", "/etc/debian_version"); out != "12.0\n" {
		t.Errorf("%q", out)
	}
	if got := link.Stats().Down; got > padding/5 {
		t.Errorf("%d of %d bytes had come", got, padding)
	}
}
