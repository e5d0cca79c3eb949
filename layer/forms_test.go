package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
)

// item is a file of a test tar.
type item struct {
	tar.Header
	data []byte
}

func file(name string, data []byte) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(1700000000, 0)}, data}
}

func dir(name string) item {
	return item{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1700000000, 0)}}
}

func makeTar(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range items {
		h := items[i].Header
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := w.Write(items[i].data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// text is n bytes that compress like a program's, repeatable by seed.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+40)
	for len(b) < n {
		if r.IntN(3) == 0 && len(b) > 1000 {
			at, k := r.IntN(len(b)-100), 4+r.IntN(36)
			b = append(b, b[at:at+k]...)
		} else {
			for range 1 + r.IntN(8) {
				b = append(b, byte('a'+r.IntN(24)))
			}
		}
	}
	return b[:n]
}

// noise is n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// sample is a tar with all that compressors treat differently: text, noise, zeros, many small files, some large ones.
func sample(t testing.TB) ([]item, []byte) {
	made.Do(func() { made.items, made.tar = makeSample(t) })
	return made.items, made.tar
}

// made is the sample, which takes a while to make.
var made struct {
	sync.Once
	items []item
	tar   []byte
}

func makeSample(t testing.TB) ([]item, []byte) {
	items := []item{dir("./"), dir("usr/"), dir("usr/bin")}
	for i := range 50 {
		items = append(items, file(fmt.Sprintf("usr/bin/small%02d", i), text(uint64(i), 100+i*431)))
	}
	items = append(items,
		file("usr/noise", noise(1, 600_077)), file("usr/zeros", make([]byte, 4<<20+3)), file("usr/large", text(99, 5<<20+12345)),
		file("usr/empty", nil), file("usr/mixed", append(append(text(5, 700_000), noise(6, 300_000)...), text(7, 1<<20)...)),
		file("usr/exact", text(8, ChunkSize)), item{Header: tar.Header{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin", Mode: 0o777}},
		item{Header: tar.Header{Name: "usr/link", Typeflag: tar.TypeLink, Linkname: "usr/large"}}, file("last", text(10, 3000)))
	return items, makeTar(t, items...)
}

// form under test.
type testForm struct {
	name string
	pack func(t testing.TB, tar []byte) ([]byte, map[string]string)
	typ  string
	mode Mode // when opened for the first time
}

const (
	typeTar  = "application/vnd.oci.image.layer.v1.tar"
	typeGzip = "application/vnd.oci.image.layer.v1.tar+gzip"
	typeZstd = "application/vnd.oci.image.layer.v1.tar+zstd"
)

// forms are all forms; of those that differ by their compressor's level only one where time is short, as under the race detector.
func forms() []testForm {
	if !testing.Short() {
		return allForms()
	}
	return slices.DeleteFunc(allForms(), func(f testForm) bool {
		return slices.Contains([]string{"gzip-1", "gzip-9", "pigz", "go-gzip", "huffman", "zstd-7", "estargz"}, f.name)
	})
}

func allForms() []testForm {
	return []testForm{
		{"tar", func(t testing.TB, b []byte) ([]byte, map[string]string) { return b, nil }, typeTar, Streaming},
		{"gzip-1", command("gzip", "-1"), typeGzip, Streaming},
		{"gzip-6", command("gzip", "-6"), typeGzip, Streaming},
		{"gzip-9", command("gzip", "-9"), typeGzip, Streaming},
		{"pigz", command("pigz", "-p2", "-b", "128"), typeGzip, Streaming},
		{"go-gzip", goGzip(gzip.DefaultCompression, 0), typeGzip, Streaming},
		{"go-gzip-members", goGzip(gzip.BestSpeed, 300_000), typeGzip, Streaming},
		{"stored", goGzip(gzip.NoCompression, 0), typeGzip, Streaming},
		{"huffman", goGzip(gzip.HuffmanOnly, 0), typeGzip, Streaming},
		{"zstd-one", command("zstd", "-3"), typeZstd, Streaming},
		{"zstd-7", command("zstd", "-7", "--check"), typeZstd, Streaming},
		{"zstd-frames", zstdFrames, typeZstd, Streaming},
		{"estargz", packEstargz(0), typeGzip, LazyTOC},
		{"estargz-inner", packEstargz(200_000), typeGzip, LazyTOC},
		{"zstdchunked", packZstdChunked, typeZstd, LazyTOC},
	}
}

// named is the form of that name.
func named(name string) testForm {
	for _, f := range allForms() {
		if f.name == name {
			return f
		}
	}
	return testForm{}
}

func command(name string, args ...string) func(testing.TB, []byte) ([]byte, map[string]string) {
	return func(t testing.TB, b []byte) ([]byte, map[string]string) {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
		cmd := exec.Command(name, append(args, "-c")...)
		cmd.Stdin = bytes.NewReader(b)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return out, nil
	}
}

func goGzip(level, member int) func(testing.TB, []byte) ([]byte, map[string]string) {
	return func(t testing.TB, b []byte) ([]byte, map[string]string) {
		var out bytes.Buffer
		for n := member; ; b = b[n:] {
			if n == 0 || n > len(b) {
				n = len(b)
			}
			w, err := gzip.NewWriterLevel(&out, level)
			if err != nil {
				t.Fatal(err)
			}
			w.Name, w.Comment, w.Extra = "layer.tar", "a comment", []byte("xx")
			w.Write(b[:n])
			w.Close()
			if n == len(b) {
				return out.Bytes(), nil
			}
		}
	}
}

func zstdFrames(t testing.TB, b []byte) ([]byte, map[string]string) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	out := []byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3} // a skippable frame to begin with
	for len(b) > 0 {
		n := min(len(b), 700_000)
		out = enc.EncodeAll(b[:n], out)
		b = b[n:]
	}
	return out, nil
}

func oneFrame(t testing.TB, b []byte) ([]byte, map[string]string) {
	var out bytes.Buffer
	enc, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enc.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), nil
}

func packEstargz(minChunk int) func(testing.TB, []byte) ([]byte, map[string]string) {
	return func(t testing.TB, b []byte) ([]byte, map[string]string) {
		var out bytes.Buffer
		w := estargz.NewWriterLevel(&out, gzip.BestSpeed)
		w.MinChunkSize = minChunk
		if err := w.AppendTar(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		toc, err := w.Close()
		if err != nil {
			t.Fatal(err)
		}
		return out.Bytes(), map[string]string{estargz.TOCJSONDigestAnnotation: toc.String()}
	}
}

func packZstdChunked(t testing.TB, b []byte) ([]byte, map[string]string) {
	var out bytes.Buffer
	meta := make(map[string]string)
	w := estargz.NewWriterWithCompressor(&out, &zstdchunked.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: meta})
	if err := w.AppendTar(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	toc, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	meta[estargz.TOCJSONDigestAnnotation] = toc.String()
	return out.Bytes(), meta
}
