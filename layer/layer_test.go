package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	out, err := tryRead(t.Context(), l, st, entry, off, n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryRead(ctx context.Context, l *Layer, st *memStore, entry int, off, n int64) ([]byte, error) {
	var out []byte
	for n > 0 {
		c, err := l.Chunk(ctx, entry, off)
		if err != nil {
			return nil, fmt.Errorf("entry %d at %d: %w", entry, off, err)
		}
		var data []byte
		if st != nil {
			data = st.get(c.Digest)
		}
		if data == nil {
			if data, err = l.Fetch(ctx, c); err != nil {
				return nil, fmt.Errorf("entry %d at %d: %w", entry, off, err)
			}
		}
		if int64(len(data)) != c.Size || off < c.Offset || off >= c.Offset+c.Size {
			return nil, fmt.Errorf("entry %d at %d: chunk %+v with %d bytes", entry, off, c, len(data))
		}
		k := min(n, c.Offset+c.Size-off)
		out = append(out, data[off-c.Offset:off-c.Offset+k]...)
		off, n = off+k, n-k
	}
	return out, nil
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
		l.owned.Wait() // the store is empty, whatever had been remembered
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
	for _, f := range []testForm{named("tar"), named("gzip-1"), named("gzip-6"), named("gzip-9")} {
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

// TestReadOneFrame reads a single frame's chunks one after the other, none of them stored before: it is not read from its
// start for each of them.
func TestReadOneFrame(t *testing.T) {
	var items []item
	for i := range 12 {
		items = append(items, file(fmt.Sprintf("f%02d", i), noise(uint64(i), 3<<19)))
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	blob := enc.EncodeAll(makeTar(t, items...), nil)
	o := Options{Dir: t.TempDir()}
	l := open(t, descriptor(blob, typeZstd, nil), &memBlob{data: blob}, o)
	<-l.Done()
	for _, full := range []bool{false, true} {
		mb, st := &memBlob{data: blob}, newStore()
		if full {
			st.fail = errors.New("disk full")
		}
		o.Chunks = st
		l = open(t, descriptor(blob, typeZstd, nil), mb, o)
		for i := range items {
			if !bytes.Equal(readEntry(t, l, st, i, 0, 3<<19), items[i].data) {
				t.Error("other bytes")
			}
			for { // until the flight has read ahead
				l.mu.RLock()
				n := len(l.flights)
				l.mu.RUnlock()
				if n == 0 {
					break
				}
				time.Sleep(time.Millisecond)
			}
		}
		if limit := int64(len(blob)) * 11 / 10; !full && mb.bytes > limit {
			t.Errorf("%d bytes of %d read", mb.bytes, len(blob))
		}
	}
}

// TestCompleteOneFrame completes a layer of many chunks in a single frame: it is read once.
func TestCompleteOneFrame(t *testing.T) {
	var items []item
	for i := range 3 * maxBatch {
		items = append(items, file(fmt.Sprintf("f%05d", i), fmt.Append(nil, i)))
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	blob := enc.EncodeAll(makeTar(t, items...), nil)
	o := Options{Dir: t.TempDir()}
	l := open(t, descriptor(blob, typeZstd, nil), &memBlob{data: blob}, o)
	if <-l.Done(); l.Err() != nil {
		t.Fatal(l.Err())
	}
	mb, st := &memBlob{data: blob}, newStore()
	o.Chunks = st
	l = open(t, descriptor(blob, typeZstd, nil), mb, o)
	if err := l.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(st.m) != len(items) || mb.bytes != int64(len(blob)) {
		t.Errorf("%d chunks of %d, %d bytes of %d", len(st.m), len(items), mb.bytes, len(blob))
	}
}
