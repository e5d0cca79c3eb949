package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// usrTar is a tar of what a Debian machine has under /usr, up to size bytes: real programs, libraries and texts.
func usrTar(tb testing.TB, size int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, root := range []string{"/usr/lib", "/usr/share", "/usr/bin"} {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || b.Len() > size || !d.Type().IsRegular() {
				return nil
			}
			data, err := os.ReadFile(path)
			if err != nil || len(data) > size/8 {
				return nil
			}
			w.WriteHeader(&tar.Header{Name: path[1:], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))})
			w.Write(data)
			return nil
		})
	}
	w.Close()
	if b.Len() < size/2 {
		tb.Skip("/usr is too small here")
	}
	return b.Bytes()
}

// BenchmarkStream streams a gzip layer, hashing and storing its chunks and building its index, beside what every unpacker has to do
// at least: gzip -dc of the same blob into sha256sum. They take turns; ratio is the time of the one over that of the
// other. "go" is the same with this package's inflate instead of gzip: one goroutine that inflates and digests.
func BenchmarkStream(b *testing.B) {
	tarball := usrTar(b, 256<<20)
	var packed bytes.Buffer
	zw, _ := gzip.NewWriterLevel(&packed, 6)
	zw.Write(tarball)
	zw.Close()
	blob := packed.Bytes()
	path := filepath.Join(b.TempDir(), "layer.gz")
	if err := os.WriteFile(path, blob, 0o600); err != nil {
		b.Fatal(err)
	}
	d := descriptor(blob, typeGzip, nil)
	d.DiffID = sum(tarball)
	var ours, shell, plain time.Duration
	b.SetBytes(int64(len(tarball)))
	for b.Loop() {
		start := time.Now()
		st := new(nullStore)
		l, err := Open(b.Context(), d, &memBlob{data: blob}, Options{Dir: b.TempDir(), Chunks: st})
		if err != nil {
			b.Fatal(err)
		}
		if <-l.Done(); l.Err() != nil {
			b.Fatal(l.Err())
		}
		l.Close()
		ours += time.Since(start)

		start = time.Now()
		if out, err := exec.Command("sh", "-c", "gzip -dc <$0 | sha256sum", path).CombinedOutput(); err != nil {
			b.Fatal(err, string(out))
		}
		shell += time.Since(start)

		start = time.Now()
		h := sha256.New()
		if _, err := io.Copy(h, newGzipReader(bytes.NewReader(blob), false)); err != nil {
			b.Fatal(err)
		}
		plain += time.Since(start)
	}
	b.ReportMetric(float64(ours)/float64(shell), "ratio-to-gzip|sha256sum")
	b.ReportMetric(float64(ours)/float64(plain), "ratio-to-go")
	b.ReportMetric(float64(len(tarball)*b.N)/1e6/ours.Seconds(), "MB/s-streamed")
}

// nullStore verifies what it is given and forgets it: a disk that costs nothing.
type nullStore struct{}

func (nullStore) Put(_ context.Context, key [32]byte, data []byte) error {
	if sha256.Sum256(data) != key {
		return errors.New("put: not its digest")
	}
	return nil
}
func (nullStore) Has([32]byte) bool     { return false }
func (nullStore) Delete([32]byte) error { return nil }

// BenchmarkOpenIndex opens the index of a layer of 100,000 entries.
func BenchmarkOpenIndex(b *testing.B) {
	var items []item
	for i := range 100_000 {
		items = append(items, file(fmt.Sprintf("usr/lib/python3/dist-packages/package%03d/module%05d.py", i/200, i), []byte(fmt.Sprint(i))))
	}
	blob := makeTar(b, items...)
	dir := b.TempDir()
	d := descriptor(blob, typeTar, nil)
	l := open(b, d, &memBlob{data: blob}, Options{Dir: dir})
	if <-l.Done(); l.Err() != nil {
		b.Fatal(l.Err())
	}
	b.ResetTimer()
	for b.Loop() {
		l, err := Open(b.Context(), d, &memBlob{data: blob}, Options{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if m, why := l.Mode(); m != LazyIndex {
			b.Fatal(m, why)
		}
		l.Close()
	}
	st, _ := os.Stat(filepath.Join(dir, indexName(l.id, Digest{})))
	b.ReportMetric(float64(st.Size())/float64(len(items)+500), "bytes/entry")
}

// BenchmarkComplete completes a layer of many small files and some large ones by its index or TOC, from memory.
func BenchmarkComplete(b *testing.B) {
	var items []item
	for i := range 4000 {
		items = append(items, file(fmt.Sprintf("small%d", i), text(uint64(i%50), 1000+i%50*200)))
	}
	for i := range 4 {
		items = append(items, file(fmt.Sprintf("large%d", i), text(uint64(i), 6<<20)))
	}
	tarball := makeTar(b, items...)
	for _, f := range forms() {
		if f.name != "go-gzip" && f.name != "estargz" && f.name != "zstdchunked" && f.name != "zstd-frames" {
			continue
		}
		b.Run(f.name, func(b *testing.B) {
			blob, ann := f.pack(b, tarball)
			d := descriptor(blob, f.typ, ann)
			dir := b.TempDir()
			l := open(b, d, &memBlob{data: blob}, Options{Dir: dir})
			<-l.Done()
			l.Close()
			b.SetBytes(int64(len(tarball)))
			b.ReportAllocs()
			for b.Loop() {
				l, err := Open(b.Context(), d, &memBlob{data: blob}, Options{Dir: dir, Chunks: nullStore{}})
				if err != nil {
					b.Fatal(err)
				}
				if err := l.Complete(b.Context()); err != nil {
					b.Fatal(err)
				}
				l.Close()
			}
		})
	}
}

// BenchmarkFetch fetches random chunks of small files by the index of a gzip layer: what a page fault costs beside the wire.
func BenchmarkFetch(b *testing.B) {
	tarball := usrTar(b, 64<<20)
	blob, _ := goGzip(gzip.DefaultCompression, 0)(b, tarball)
	d := descriptor(blob, typeGzip, nil)
	dir := b.TempDir()
	l := open(b, d, &memBlob{data: blob}, Options{Dir: dir})
	if <-l.Done(); l.Err() != nil {
		b.Fatal(l.Err())
	}
	n := len(l.t.chunks)
	b.ResetTimer()
	i := 0
	for b.Loop() {
		i = (i + 7919) % n
		if _, err := l.Fetch(b.Context(), l.t.chunk(uint32(i))); err != nil {
			b.Fatal(err)
		}
	}
}
