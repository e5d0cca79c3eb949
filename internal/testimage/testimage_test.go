package testimage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

func entries() []Entry {
	return []Entry{
		Dir("etc", 0o755),
		File("etc/motd", "hello\n").Owned(1, 2).Xattr("user.a", "b"),
		Executable("etc/run", "#!/bin/sh\n").Perm(0o4755),
		Symlink("etc/link", "motd"),
		Hardlink("etc/hard", "etc/motd"),
		CharDevice("etc/null", 1, 3),
		Fifo("etc/pipe"),
		Whiteout("etc/gone"),
		Opaque("etc/opaque"),
		Stream("big", 300_000, zeros{}),
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// names lists a tar, without what a TOC adds.
func names(t *testing.T, r io.Reader) map[string]*tar.Header {
	t.Helper()
	out := map[string]*tar.Header{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		switch h.Name {
		case estargz.TOCTarName, estargz.NoPrefetchLandmark, estargz.PrefetchLandmark:
		default:
			out[h.Name] = h
		}
	}
}

// TestForms makes every form of a layer and reads it back.
func TestForms(t *testing.T) {
	for _, form := range Forms() {
		t.Run(string(form), func(t *testing.T) {
			l, err := NewLayer(form, entries()...)
			if err != nil {
				t.Fatal(err)
			}
			rc, err := l.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			got := names(t, io.TeeReader(rc, h))
			io.Copy(h, rc)
			rc.Close()
			if len(got) != len(entries()) {
				t.Errorf("%d entries, want %d: %v", len(got), len(entries()), got)
			}
			if m := got["etc/motd"]; m == nil || m.Uid != 1 || m.PAXRecords["SCHILY.xattr.user.a"] != "b" {
				t.Errorf("etc/motd: %+v", m)
			}
			if form != ZstdChunked && hex.EncodeToString(h.Sum(nil)) != l.diffID.Hex {
				t.Error("the diffID is not the tar's")
			}
			if form == EStargz {
				b := blob(t, l)
				if _, err := estargz.Open(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))); err != nil {
					t.Error(err)
				}
				if l.Annotations[estargz.TOCJSONDigestAnnotation] == "" {
					t.Error("nothing vouches for the TOC")
				}
			}
			if form == ZstdChunked {
				b := blob(t, l)
				_, err := estargz.Open(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), estargz.WithDecompressors(new(zstdchunked.Decompressor)))
				if err != nil {
					t.Error(err)
				}
				if l.Annotations[zstdchunked.ManifestChecksumAnnotation] == "" || l.Annotations[zstdchunked.ManifestPositionAnnotation] == "" {
					t.Errorf("annotations: %v", l.Annotations)
				}
			}
		})
	}
}

func blob(t *testing.T, l *Layer) []byte {
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
	return b
}

func TestImageAndLayout(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "layer.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(WriteTar(f, entries()...), f.Close()); err != nil {
		t.Fatal(err)
	}
	a, err := FileLayer(Gzip, path, dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewLayer(EStargz, File("x", "y"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := Image(Config{Cmd: []string{"sh"}, WorkingDir: "/etc", Env: []string{"A=b"}}, a, b)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "layout")
	if err := WriteLayout(out, "latest", img); err != nil {
		t.Fatal(err)
	}
	idx, err := layout.ImageIndexFromPath(out)
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	got, err := idx.Image(want)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := got.Layers()
	if err != nil || len(layers) != 2 {
		t.Fatalf("%d layers: %v", len(layers), err)
	}
	for _, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		h, _, err := v1.SHA256(rc)
		if d, _ := l.Digest(); err != nil || h != d {
			t.Errorf("layer %s has digest %s: %v", d, h, err)
		}
	}
}
