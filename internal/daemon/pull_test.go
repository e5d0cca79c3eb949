package daemon

import (
	"bytes"
	"io"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// lazyForms are those that are read by a TOC.
var lazyForms = []testimage.Form{testimage.EStargz, testimage.ZstdChunked}

// A pull of a layer that has a TOC fetches each byte once, though it is read twice: by chunks, and whole.
func TestPullLazyLayer(t *testing.T) {
	for _, form := range lazyForms {
		t.Run(string(form), func(t *testing.T) {
			h := newHost(t, registry.Options{})
			l := layerOf(h, form, testimage.File("f", noise(9<<20)), testimage.File("g", strings.Repeat("x", 100_000)))
			size, err := l.Size()
			if err != nil {
				t.Fatal(err)
			}
			ref := h.add("a/b:1", l)
			h.mustPull(ref)
			digest, err := l.Digest()
			if err != nil {
				t.Fatal(err)
			}
			if n := h.registry.Stats().BytesOf[digest.String()]; n > size+size/10 {
				t.Errorf("%d bytes were sent of a blob of %d", n, size)
			}
			if left, err := cached(h.home.Cache("partial"), nil); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			h.registry.Down()
			h.wantCat(ref, "/f", "", noise(9<<20))
			h.mustPull(ref) // is no work
		})
	}
}

// A TOC vouches for chunks, not for the layer: a pull finds out when that is not what the manifest or the config says.
func TestPullChecksLazyLayer(t *testing.T) {
	for _, form := range lazyForms {
		t.Run(string(form)+", diffID", func(t *testing.T) {
			h := newHost(t, registry.Options{})
			img, err := testimage.Image(testimage.Config{}, layerOf(h, form, testimage.File("f", noise(2<<20))))
			if err != nil {
				t.Fatal(err)
			}
			config, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			config = config.DeepCopy()
			config.RootFS.DiffIDs[0].Hex = strings.Repeat("a", 64)
			if img, err = mutate.ConfigFile(img, config); err != nil {
				t.Fatal(err)
			}
			h.wantCorruptPull(img)
		})
		t.Run(string(form)+", digest", func(t *testing.T) {
			h := newHost(t, registry.Options{})
			l := layerOf(h, form, testimage.File("f", noise(2<<20)))
			img, err := testimage.Image(testimage.Config{}, l)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.registry.AddImage("a/b:0", img); err != nil {
				t.Fatal(err)
			}
			// A byte that no chunk knows of: of a gzip header, or of the checksum of the first zstd frame.
			off := int64(9)
			if form == testimage.ZstdChunked {
				off = zstdChecksum(t, l)
			}
			h.registry.Inject(registry.Match{Op: registry.Blob, Ref: blobDigest(t, l)}, registry.FlipByte(off))
			h.wantCorruptPull(img)
		})
	}
}

// wantCorruptPull adds img, pulls it and expects that it is refused and leaves nothing.
func (h *host) wantCorruptPull(img v1.Image) {
	h.Helper()
	if _, err := h.registry.AddImage("a/b:1", img); err != nil {
		h.Fatal(err)
	}
	_, err := h.pull(api.PullRequest{ImageRequest: api.ImageRequest{Image: h.registry.Host() + "/a/b:1"}})
	if e := api.AsError(err); e == nil || e.Code != api.CodeCorrupt {
		h.Errorf("pull: %v", err)
	}
	for _, dir := range []string{"partial", "layers"} {
		if left, err := cached(h.home.Cache(dir), nil); err != nil || len(left) > 0 {
			h.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

// What is wrong once, on its way, is fetched afresh.
func TestPullHeals(t *testing.T) {
	for _, form := range testimage.Forms() {
		t.Run(string(form), func(t *testing.T) {
			h := newHost(t, registry.Options{})
			l := layerOf(h, form, testimage.File("f", noise(3<<20)))
			ref := h.add("a/b:1", l)
			in := h.registry.Inject(registry.Match{Op: registry.Blob, Ref: blobDigest(t, l), Times: 2}, registry.FlipByte(1<<20))
			h.mustPull(ref)
			if in.Hits() == 0 {
				t.Error("the fault hit nothing")
			}
			h.wantCat(ref, "/f", api.PullNever, noise(3<<20))
		})
	}
}

func blobDigest(t *testing.T, l v1.Layer) string {
	t.Helper()
	d, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// zstdChecksum is where a checksum ends that the first frame of l, with the tar header, has.
func zstdChecksum(t *testing.T, l v1.Layer) int64 {
	t.Helper()
	rc, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	next := bytes.Index(b[4:], []byte{0x28, 0xb5, 0x2f, 0xfd})
	if next < 0 {
		t.Fatal("one frame only")
	}
	return int64(next) + 3
}
