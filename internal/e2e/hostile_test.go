package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// hostile is an image as nobody should build it.
type hostile struct {
	name   string
	layers []*testimage.Layer
	// refused is what the one line says with which a pull fails; "" where the image is to look as umoci unpacks it.
	refused string
}

func header(name string, typ byte, size int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: typ, Mode: 0o644, Size: size, ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX}
}

// tarOf is a tar of headers, whose files have bytes of their own.
func tarOf(t *testing.T, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write(bytes.Repeat([]byte{byte('a' + i%26)}, int(h.Size)))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func hostileImages(t *testing.T) []hostile {
	file := func(name string, n int64) *tar.Header { return header(name, tar.TypeReg, n) }
	link := func(name, to string, typ byte) *tar.Header {
		h := header(name, typ, 0)
		h.Linkname = to
		return h
	}
	gz := func(tarball []byte, blob ...byte) *testimage.Layer {
		return testimage.RawLayer(append(gzipOf(t, tarball), blob...), tarball, types.OCILayer)
	}
	plain := tarOf(t, header("d/", tar.TypeDir, 0), file("d/f", 3000), file("g", 10))
	one := gz(plain)
	deep := strings.Repeat("d/", 1100)
	var many, again []*testimage.Layer
	for i := range 110 {
		many = append(many, gz(tarOf(t, file(fmt.Sprintf("f%d", i), 5), file("same", int64(1+i)), file(fmt.Sprintf(".wh.f%d", i-3), 0))))
	}
	for range 5 {
		again = append(again, one)
	}
	halves := append(gzipOf(t, plain[:1000]), gzipOf(t, plain[1000:])...)
	// A frame with a window of 512 MiB and one raw block (RFC 8878, 3.1.1).
	wide := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 19 << 3, byte(len(plain)<<3 | 1), byte(len(plain) >> 5), byte(len(plain) >> 13)}
	wide = append(wide, plain...)
	records := tarOf(t, file("x", 3<<20), file("y", 1)) // the first becomes the PAX header of the second (POSIX pax, "x")
	records[156] = tar.TypeXHeader
	copy(records[148:156], "        ")
	sum := 0
	for _, c := range records[:512] {
		sum += int(c)
	}
	copy(records[148:], fmt.Sprintf("%06o\x00 ", sum))
	return []hostile{
		{"nothing in it", []*testimage.Layer{gz(make([]byte, 1024)), one}, ""},
		{"a tar without an end", []*testimage.Layer{gz(plain[:len(plain)-1024])}, ""},
		{"one layer five times", again, ""},
		{"110 layers", many, ""},
		{"members end anywhere", []*testimage.Layer{testimage.RawLayer(halves, plain, types.OCILayer)}, ""},
		{"duplicates", []*testimage.Layer{gz(tarOf(t, file("f", 10), header("f/", tar.TypeDir, 0), file("f/x", 7), file("g", 9), link("g", "f/x", tar.TypeSymlink), link("h", "f/x", tar.TypeLink), file("h", 4)))}, ""},
		{"names of all kinds", []*testimage.Layer{gz(tarOf(t, header("a/", tar.TypeDir, 0), header("./a/b", tar.TypeDir, 0), header("/abs//", tar.TypeDir, 0), file("./a//b/./c", 3), file("/abs/file", 4), file("no\xffutf8", 5), file(strings.Repeat("n", 255), 6), file("new\nline", 7)))}, ""},
		{"garbage behind the data", []*testimage.Layer{gz(plain, []byte("garbage")...)}, "garbage after the gzip data"},
		{"cut short", []*testimage.Layer{testimage.RawLayer(gzipOf(t, plain)[:60], plain, types.OCILayer)}, "ends early"},
		{"another tar than the config says", []*testimage.Layer{testimage.RawLayer(gzipOf(t, plain), plain[:1024], types.OCILayer)}, "its tar has the digest"},
		{"another media type", []*testimage.Layer{testimage.RawLayer(plain, plain, types.OCILayer)}, "its bytes are an uncompressed tar"},
		{"a window of 512 MiB", []*testimage.Layer{testimage.RawLayer(wide, plain, types.OCILayerZStd)}, "window"},
		{"a way out", []*testimage.Layer{gz(tarOf(t, file("../../etc/escaped", 3)))}, "refused"},
		{"a link out", []*testimage.Layer{gz(tarOf(t, link("l", "../../etc/passwd", tar.TypeLink)))}, "refused"},
		{"too deep", []*testimage.Layer{gz(tarOf(t, file(deep+"f", 3)))}, "refused"},
		{"megabytes of PAX records", []*testimage.Layer{gz(records)}, "tar is damaged"},
	}
}

// TestHostileImages pulls and mounts images that are at the edge of what is an image, or beyond it: they look as umoci unpacks
// them, or are refused in one line, and the daemon serves the next.
func TestHostileImages(t *testing.T) {
	needRoot(t) // to unpack with owners
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("umoci is not installed")
	}
	s := serve(t, registry.Options{})
	h := newHome(t)
	for i, c := range hostileImages(t) {
		t.Run(c.name, func(t *testing.T) {
			h := *h
			h.t = t
			img, err := testimage.Image(testimage.Config{}, c.layers...)
			if err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("hostile/i%d:1", i)
			if _, err := s.AddImage(name, img); err != nil {
				t.Fatal(err)
			}
			ref := s.Host() + "/" + name
			if c.refused != "" {
				o := h.fs("pull", ref)
				if o.code != 1 || !strings.Contains(o.stderr, c.refused) || strings.Count(strings.TrimSpace(o.stderr), "\n") > 0 {
					t.Errorf("want a line with %q: %v", c.refused, o)
				}
				return
			}
			layout, bundle, mnt := filepath.Join(t.TempDir(), "l"), filepath.Join(t.TempDir(), "b"), t.TempDir()
			if err := testimage.WriteLayout(layout, "latest", img); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("umoci", "unpack", "--image", layout+":latest", bundle).CombinedOutput(); err != nil {
				t.Fatalf("umoci: %v\n%s", err, out)
			}
			h.must("msb-fs", "pull", ref)
			h.must("msb-fs", "mount", "--ro", ref, mnt)
			for _, d := range diff(t, filepath.Join(bundle, "rootfs"), mnt) {
				if !strings.HasPrefix(d, ".: ") { // the root itself is not in these layers: umoci makes it now
					t.Error(d)
				}
			}
			h.must("msb-fs", "umount", mnt)
		})
	}
}
