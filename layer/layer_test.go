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
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memBlob is a blob in memory that counts what is read and can misbehave.
type memBlob struct {
	data []byte
	// cut, when it is not 0, breaks every stream after so many bytes.
	cut int
	// gate, when it is not nil, lets a stream pass byte n only when it has been told so.
	gate *gate

	mu    sync.Mutex
	opens int
	reads int
	bytes int64
}

func (b *memBlob) Size() int64 { return int64(len(b.data)) }

func (b *memBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	b.mu.Lock()
	b.reads++
	b.bytes += int64(len(p))
	b.mu.Unlock()
	return bytes.NewReader(b.data).ReadAt(p, off)
}

func (b *memBlob) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	b.mu.Lock()
	b.opens++
	b.mu.Unlock()
	if off > b.Size() {
		return nil, fmt.Errorf("open at %d of %d", off, b.Size())
	}
	return &memStream{ctx: ctx, b: b, pos: int(off), begin: int(off)}, nil
}

type memStream struct {
	ctx        context.Context
	b          *memBlob
	pos, begin int
}

func (s *memStream) Close() error { return nil }

func (s *memStream) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, s.ctx.Err()
	}
	rest := s.b.data[s.pos:]
	if s.b.cut > 0 {
		if left := s.begin + s.b.cut - s.pos; left <= 0 && len(rest) > 0 {
			return 0, errors.New("connection reset")
		} else {
			rest = rest[:min(len(rest), left)]
		}
	}
	if len(rest) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(rest), 10_000)
	if s.b.gate != nil {
		var err error
		if n, err = s.b.gate.pass(s.ctx, s.pos, n); err != nil {
			return 0, err
		}
	}
	copy(p[:n], rest)
	s.pos += n
	s.b.mu.Lock()
	s.b.bytes += int64(n)
	s.b.mu.Unlock()
	return n, nil
}

// gate holds a stream back at a byte.
type gate struct {
	mu      sync.Mutex
	limit   int
	changed chan struct{}
}

func newGate(limit int) *gate { return &gate{limit: limit, changed: make(chan struct{})} }

func (g *gate) open(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = limit
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) pass(ctx context.Context, pos, n int) (int, error) {
	for {
		g.mu.Lock()
		limit, changed := g.limit, g.changed
		g.mu.Unlock()
		if pos < limit {
			return min(n, limit-pos), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// memStore is a Store in memory.
type memStore struct {
	mu   sync.Mutex
	m    map[Digest][]byte
	fail error // of Put
	puts int
}

func newStore() *memStore { return &memStore{m: make(map[Digest][]byte)} }

func (s *memStore) Put(ctx context.Context, key [32]byte, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if sha256.Sum256(data) != key {
		return errors.New("put: not its digest")
	}
	s.puts++
	s.m[key] = bytes.Clone(data)
	return nil
}

func (s *memStore) Has(key [32]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key] != nil
}

func (s *memStore) Delete(key [32]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, key)
	return nil
}

func (s *memStore) get(key Digest) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key]
}

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

func forms() []testForm {
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

func packEstargz(minChunk int) func(testing.TB, []byte) ([]byte, map[string]string) {
	return func(t testing.TB, b []byte) ([]byte, map[string]string) {
		var out bytes.Buffer
		w := estargz.NewWriter(&out)
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

func sum(b []byte) string { return Digest(sha256.Sum256(b)).String() }

// descriptor is what a manifest would say about blob.
func descriptor(blob []byte, typ string, annotations map[string]string) Descriptor {
	return Descriptor{Digest: sum(blob), MediaType: typ, Size: int64(len(blob)), Annotations: annotations}
}

func open(t testing.TB, d Descriptor, b Blob, o Options) *Layer {
	t.Helper()
	l, err := Open(t.Context(), d, b, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func allEntries(t testing.TB, l *Layer) []Entry {
	t.Helper()
	var all []Entry
	for {
		es, done, err := l.Entries(t.Context(), len(all))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, es...)
		if done {
			return all
		}
	}
}

// readEntry reads n bytes of an entry from off on as fs does: chunk by chunk, from the store or else the blob.
func readEntry(t testing.TB, l *Layer, st *memStore, entry int, off, n int64) []byte {
	t.Helper()
	var out []byte
	for n > 0 {
		c, err := l.Chunk(t.Context(), entry, off)
		if err != nil {
			t.Fatalf("entry %d at %d: %v", entry, off, err)
		}
		var data []byte
		if st != nil {
			data = st.get(c.Digest)
		}
		if data == nil {
			if data, err = l.Fetch(t.Context(), c); err != nil {
				t.Fatalf("entry %d at %d: %v", entry, off, err)
			}
		}
		if int64(len(data)) != c.Size || off < c.Offset || off >= c.Offset+c.Size {
			t.Fatalf("entry %d at %d: chunk %+v with %d bytes", entry, off, c, len(data))
		}
		k := min(n, c.Offset+c.Size-off)
		out = append(out, data[off-c.Offset:off-c.Offset+k]...)
		off, n = off+k, n-k
	}
	return out
}

func find(t testing.TB, es []Entry, name string) int {
	t.Helper()
	for i := len(es) - 1; i >= 0; i-- {
		if es[i].Name == name {
			return i
		}
	}
	t.Fatalf("no entry %q", name)
	return 0
}

// TestForms reads every form of one layer at random: while it streams, after that, and from its index with and without its
// chunks. The same bytes must come, in the same chunks.
func TestForms(t *testing.T) {
	items, tarball := sample(t)
	digests := make(map[string]string) // name and offset of a chunk -> digest in the first form
	for _, f := range forms() {
		t.Run(f.name, func(t *testing.T) {
			blob, ann := f.pack(t, tarball)
			d := descriptor(blob, f.typ, ann)
			if f.mode == Streaming {
				d.DiffID = sum(tarball)
			}
			o := Options{Dir: t.TempDir(), Chunks: newStore()}
			l := open(t, d, &memBlob{data: blob}, o)
			if m, why := l.Mode(); m != f.mode && m != Full {
				t.Fatalf("mode %s (%s), want %s", m, why, f.mode)
			}
			readAll(t, l, o.Chunks.(*memStore), items)
			if err := l.Complete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if m, _ := l.Mode(); m != Full {
				t.Errorf("mode %s after Complete", m)
			}
			es := allEntries(t, l)
			for i, e := range es {
				for off := int64(0); off < e.Size && regular(e.Mode); {
					c, err := l.Chunk(t.Context(), i, off)
					if err != nil {
						t.Fatal(err)
					}
					if !o.Chunks.Has(c.Digest) {
						t.Fatalf("%s at %d is not stored after Complete", e.Name, off)
					}
					key := fmt.Sprint(e.Name, off)
					if e.Name == estargz.TOCTarName {
						// Each eStargz has its own.
					} else if digests[key] == "" {
						digests[key] = c.Digest.String()
					} else if digests[key] != c.Digest.String() {
						t.Fatalf("%s is another chunk than in the first form", key)
					}
					off = c.Offset + c.Size
				}
			}
			if err := l.Close(); err != nil { // which waits for the index file
				t.Fatal(err)
			}
			reopen(t, f, d, blob, o.Dir, items, es)
		})
	}
}

// reopen reads the layer from its index.
func reopen(t *testing.T, f testForm, d Descriptor, blob []byte, dir string, items []item, before []Entry) {
	mode := LazyIndex
	if f.mode == LazyTOC {
		mode = LazyTOC
	}
	for _, st := range []*memStore{nil, newStore()} {
		mb := &memBlob{data: blob}
		o := Options{Dir: dir}
		if st != nil {
			o.Chunks = st
		}
		l := open(t, d, mb, o)
		if m, why := l.Mode(); m != mode {
			t.Fatalf("reopened: mode %s (%s), want %s", m, why, mode)
		}
		if es := allEntries(t, l); fmt.Sprint(es) != fmt.Sprint(before) {
			t.Error("entries differ between stream and index")
		}
		if mb.reads+mb.opens != 0 {
			t.Error("an indexed layer read its blob to show its entries")
		}
		readAll(t, l, st, items)
		if st == nil {
			continue
		}
		st.m = make(map[Digest][]byte)
		mb.bytes, mb.reads = 0, 0
		if err := l.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
		if mb.bytes > int64(len(blob))*3/2 {
			t.Errorf("Complete read %d bytes of a blob of %d", mb.bytes, len(blob))
		}
		if mb.reads > 12 {
			t.Errorf("Complete sent %d requests", mb.reads)
		}
		o.Chunks = st
		readAll(t, l, st, items)
	}
}

// readAll reads random pieces of all files, and the whole of some.
func readAll(t *testing.T, l *Layer, st *memStore, items []item) {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	es := allEntries(t, l)
	for range 24 {
		it := items[r.IntN(len(items))]
		if len(it.data) == 0 {
			continue
		}
		i := find(t, es, it.Name)
		off := r.Int64N(int64(len(it.data)))
		n := min(int64(len(it.data))-off, 1+r.Int64N(200_000))
		if got := readEntry(t, l, st, i, off, n); !bytes.Equal(got, it.data[off:off+n]) {
			t.Fatalf("%s [%d,+%d) has other bytes", it.Name, off, n)
		}
	}
	for _, name := range []string{"usr/mixed", "usr/exact", "last"} {
		i := find(t, es, name)
		for _, it := range items {
			if it.Name == name && !bytes.Equal(readEntry(t, l, st, i, 0, it.Size), it.data) {
				t.Fatalf("%s has other bytes", name)
			}
		}
	}
}

// TestStreamWaits looks at a layer whose second half does not come: the first half is there, and no answer about the rest.
func TestStreamWaits(t *testing.T) {
	tarball := makeTar(t, dir("a"), file("a/first", text(1, 2<<20)), file("a/second", noise(2, 2<<20)), file("z", text(3, 10)))
	blob, _ := goGzip(6, 0)(t, tarball)
	g := newGate(len(blob) / 2)
	st := newStore()
	l := open(t, descriptor(blob, typeGzip, nil), &memBlob{data: blob, gate: g}, Options{Chunks: st})
	es, done, err := l.Entries(t.Context(), 0)
	if err != nil || done || len(es) == 0 {
		t.Fatal(es, done, err)
	}
	if got := readEntry(t, l, st, 1, 100, 1000); !bytes.Equal(got, text(1, 2<<20)[100:1100]) {
		t.Error("a/first has other bytes")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if es, _, err := l.Entries(ctx, 3); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("entry after the gate: %v, %v", es, err)
	}
	if _, err := l.Chunk(ctx, 2, 1<<20); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("chunk after the gate: %v", err)
	}
	if have, total := l.Progress(); have > total/2 || have == 0 {
		t.Errorf("progress %d of %d", have, total)
	}
	got := make(chan []byte)
	go func() { got <- readEntry(t, l, st, 2, 1<<20, 1<<20) }()
	g.open(len(blob))
	if !bytes.Equal(<-got, noise(2, 2<<20)[1<<20:]) {
		t.Error("a/second has other bytes")
	}
	<-l.Done()
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

// TestFetchWhileStreaming fetches from the blob what has passed and could not be stored.
func TestFetchWhileStreaming(t *testing.T) {
	items, tarball := sample(t)
	for _, f := range forms()[:4] {
		blob, _ := f.pack(t, tarball)
		g := newGate(len(blob) / 2)
		st := newStore()
		st.fail = errors.New("disk full")
		l := open(t, descriptor(blob, f.typ, nil), &memBlob{data: blob, gate: g}, Options{Chunks: st})
		i := 0
		for i < 40 {
			es, _, err := l.Entries(t.Context(), i)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range es {
				for _, it := range items {
					if it.Name == e.Name && len(it.data) > 0 && i < 40 && !bytes.Equal(readEntry(t, l, nil, i, 0, it.Size), it.data) {
						t.Errorf("%s: %s has other bytes", f.name, e.Name)
					}
				}
				i++
			}
		}
		g.open(len(blob))
		<-l.Done()
	}
}

// TestBrokenConnection streams over a connection that breaks all the time.
func TestBrokenConnection(t *testing.T) {
	items, tarball := sample(t)
	blob, _ := goGzip(1, 0)(t, tarball)
	mb := &memBlob{data: blob, cut: len(blob)/3 + 1}
	st := newStore()
	l := open(t, descriptor(blob, typeGzip, nil), mb, Options{Chunks: st})
	readAll(t, l, st, items)
	if <-l.Done(); l.Err() != nil || mb.opens != 3 {
		t.Errorf("%v after %d connections", l.Err(), mb.opens)
	}
	if mb.bytes != int64(len(blob)) {
		t.Errorf("read %d bytes of %d", mb.bytes, len(blob))
	}
}

// TestCorrupt streams layers that are not what the manifest says.
func TestCorrupt(t *testing.T) {
	tarball := makeTar(t, file("a", text(1, 3<<20)), file("b", noise(2, 1<<20)))
	blob, _ := goGzip(6, 0)(t, tarball)
	flip := func(at int) []byte {
		b := bytes.Clone(blob)
		b[at] ^= 4
		return b
	}
	stored, _ := goGzip(0, 0)(t, tarball)
	tests := []struct {
		name string
		blob []byte
		d    Descriptor
		want string
	}{
		{"flipped in the header", flip(3), descriptor(blob, typeGzip, nil), "digest"},
		{"flipped in the middle", flip(len(blob) / 2), descriptor(blob, typeGzip, nil), "digest"},
		{"flipped at the end", flip(len(blob) - 1), descriptor(blob, typeGzip, nil), "digest"},
		{"other tar", stored, descriptor(blob, typeGzip, nil), "bytes"},
		{"diffID", blob, Descriptor{Digest: sum(blob), DiffID: sum(blob), MediaType: typeGzip}, "tar has the digest"},
		{"cut", blob[:len(blob)-9], descriptor(blob[:len(blob)-9], typeGzip, nil), "ends early"},
		{"garbage behind", append(bytes.Clone(blob), "garbage"...), descriptor(append(bytes.Clone(blob), "garbage"...), typeGzip, nil), "garbage"},
		{"checksum", flip(len(blob) - 6), descriptor(flip(len(blob)-6), typeGzip, nil), "checksum"},
		{"media type", blob, descriptor(blob, typeZstd, nil), "its bytes are gzip"},
		{"no tar", noise(1, 10_000), descriptor(noise(1, 10_000), typeTar, nil), "tar is damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := newStore()
			st.Put(t.Context(), sha256.Sum256(noise(2, 1<<20)), noise(2, 1<<20)) // somebody else's
			l, err := Open(t.Context(), tt.d, &memBlob{data: tt.blob}, Options{Dir: t.TempDir(), Chunks: st})
			if err == nil {
				defer l.Close()
				<-l.Done()
				err = l.Err()
				if _, _, eerr := l.Entries(t.Context(), 0); !errors.Is(eerr, ErrCorrupt) {
					t.Errorf("Entries: %v", eerr)
				}
				if len(st.m) != 1 {
					t.Errorf("%d chunks left", len(st.m)-1)
				}
			}
			if !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "\n") {
				t.Errorf("err = %v", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestClose closes layers in the middle of everything.
func TestClose(t *testing.T) {
	_, tarball := sample(t)
	blob, _ := goGzip(6, 0)(t, tarball)
	g := newGate(len(blob) / 2)
	l, err := Open(t.Context(), descriptor(blob, typeGzip, nil), &memBlob{data: blob, gate: g}, Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	go func() {
		var err error
		for from := 0; err == nil; {
			var es []Entry
			es, _, err = l.Entries(context.Background(), from)
			from += len(es)
		}
		errs <- err
	}()
	go func() { errs <- l.Complete(context.Background()) }()
	time.Sleep(20 * time.Millisecond)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("err = %v", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
