package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// fuzzItems is a small layer with something of everything.
func fuzzItems() []item {
	x := file("x", []byte("1"))
	x.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b", "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1"}
	return []item{dir("./"), file("a/b", text(1, 3000)), file("a/.wh.c", nil), file("a/.wh..wh..opq", nil), typed('1', "h", "a/b"), typed('2', "s", "../x"), file("caf\xe9", nil)}
}

// use asks everything of a layer and holds what it answers against itself.
func use(t *testing.T, l *Layer) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	defer l.Close()
	n := 0
	for {
		es, done, err := l.Entries(ctx, n)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Fatal("hangs")
		}
		if err != nil {
			return
		}
		for i, e := range es {
			if name, err := cleanName(e.Name); err != nil || name != e.Name {
				t.Fatalf("entry %q", e.Name)
			}
			for off := int64(0); off < min(e.Size, 20<<20) && e.Kind == Plain && regular(e.Mode); {
				c, err := l.Chunk(ctx, n+i, off)
				if err != nil {
					if errors.Is(err, context.DeadlineExceeded) {
						t.Fatal("hangs")
					}
					return
				}
				if c.Size <= 0 || off < c.Offset || off >= c.Offset+c.Size {
					t.Fatalf("chunk %+v for byte %d", c, off)
				}
				data, err := l.Fetch(ctx, c)
				if err == nil && sum(data) != c.Digest.String() {
					t.Fatal("Fetch returns other bytes")
				}
				off = c.Offset + c.Size
			}
		}
		if n += len(es); done {
			break
		}
	}
	if err := l.Complete(ctx); errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("hangs")
	}
}

// FuzzStream takes any bytes for a layer. When they are one, its index must give the same chunks.
func FuzzStream(f *testing.F) {
	tarball := makeTar(f, fuzzItems()...)
	for _, form := range forms() {
		if form.name == "zstd-7" || strings.HasPrefix(form.name, "pigz") || strings.HasPrefix(form.name, "gzip-9") {
			continue
		}
		blob, _ := form.pack(f, tarball)
		f.Add(blob)
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		o := Options{Dir: t.TempDir(), Chunks: newStore()}
		for range 2 {
			l, err := Open(t.Context(), descriptor(blob, "", nil), &memBlob{data: blob}, o)
			if err != nil {
				t.Fatal(err)
			}
			use(t, l)
		}
		l, err := Open(t.Context(), descriptor(blob, "", nil), &memBlob{data: blob}, Options{Dir: o.Dir})
		if err != nil {
			t.Fatal(err)
		}
		if m, _ := l.Mode(); m == LazyIndex {
			if err := refetch(t, l); err != nil {
				t.Errorf("a layer that streamed well does not read from its index: %v", err)
			}
		}
		l.Close()
	})
}

// refetch fetches all chunks of a layer.
func refetch(t *testing.T, l *Layer) error {
	for i, e := range allEntries(t, l) {
		for off := int64(0); off < e.Size && e.Kind == Plain && regular(e.Mode); {
			c, err := l.Chunk(t.Context(), i, off)
			if err != nil {
				return err
			}
			if _, err := l.Fetch(t.Context(), c); err != nil {
				return err
			}
			off = c.Offset + c.Size
		}
	}
	return nil
}

// reseal makes the checksums of an index file right, whatever it holds.
func reseal(b []byte) []byte {
	var h header
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil || len(b) < indexHeader {
		return b
	}
	for i := range h.Sections {
		s := &h.Sections[i]
		if s.Off >= 0 && s.Len >= 0 && s.Off <= int64(len(b)) && s.Len <= int64(len(b))-s.Off {
			s.CRC = crc32.Checksum(b[s.Off:s.Off+s.Len], castagnoli())
		}
	}
	out := bytes.Clone(b)
	n, _ := binary.Encode(out, binary.LittleEndian, &h)
	binary.LittleEndian.PutUint32(out[n:], crc32.Checksum(out[:n], castagnoli()))
	return out
}

// FuzzIndex takes any bytes for the index file of a real layer.
func FuzzIndex(f *testing.F) {
	tarball := makeTar(f, append(fuzzItems(), file("big", text(3, 3<<20)), file("noise", noise(4, 1000)))...)
	blobs := make(map[form][]byte)
	for _, tf := range []testForm{named("tar"), named("gzip-6"), named("zstd-one"), named("estargz")} {
		blob, ann := tf.pack(f, tarball)
		o := Options{Dir: f.TempDir()}
		l, err := Open(f.Context(), descriptor(blob, tf.typ, ann), &memBlob{data: blob}, o)
		if err != nil {
			f.Fatal(err)
		}
		<-l.Done()
		b, err := appendIndex(nil, l.t, l.id, Digest{}, Digest{})
		if err != nil {
			f.Fatal(err)
		}
		blobs[l.t.form] = blob
		l.Close()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tab, h, err := parseIndex(aligned(reseal(b)))
		if err != nil {
			return
		}
		if tab.validateNames() != nil {
			return
		}
		blob := blobs[tab.form]
		if h.Blob != int64(len(blob)) {
			return
		}
		l := &Layer{blob: &memBlob{data: blob}, size: int64(len(blob)), done: make(chan struct{}), have: new(atomic.Int64), stop: func(error) {}, t: tab, o: Options{Chunks: newStore()}}
		l.settle(LazyIndex, "")
		use(t, l)
	})
}

// aligned is b at a multiple of 8.
func aligned(b []byte) []byte {
	w := make([]uint64, len(b)/8+1)
	out := records(w)[:len(b)]
	copy(out, b)
	return out
}

// FuzzTOC takes any JSON for a TOC that the manifest vouches for.
func FuzzTOC(f *testing.F) {
	var out bytes.Buffer
	w := estargz.NewWriter(&out)
	w.AppendTar(bytes.NewReader(makeTar(f, fuzzItems()...)))
	w.Close()
	f.Add([]byte(`{"version":1,"entries":[{"name":"d/","type":"dir","modtime":"2001-02-03T04:05:06Z"},{"name":"f","type":"reg","size":3,"offset":1,"chunkDigest":"` + sum([]byte("abc")) + `"}]}`))
	f.Add([]byte(`{"version":1,"entries":[{"name":"f","type":"reg","size":8388608,"chunkSize":4194304,"chunkType":"zeros"},{"name":"f","type":"chunk","chunkOffset":4194304,"chunkType":"zeros"}]}`))
	f.Add([]byte(`{"entries":[{"name":".wh..wh..opq","type":"reg","xattrs":{"a":"AA=="}}],"version":1,"x":[{}]}`))
	f.Fuzz(func(t *testing.T, j []byte) {
		blob, _ := chunked(t, [][]byte{makeTar(t, file("f", text(1, 100)))}, func([]int64) any { return json.RawMessage(`{}`) })
		tab := &table{form: formZstdParts, blob: int64(len(blob)), end: int64(len(blob))}
		tb := tocBuilder{builder: builder{t: tab}}
		if decodeTOC(bytes.NewReader(j), tb.add) != nil || tb.finish() != nil {
			return
		}
		if err := errors.Join(tab.validate(), tab.validateNames()); err != nil {
			t.Fatalf("a TOC that was accepted is not valid: %v", err)
		}
		l := &Layer{blob: &memBlob{data: blob}, size: int64(len(blob)), done: make(chan struct{}), have: new(atomic.Int64), stop: func(error) {}, t: tab, o: Options{Chunks: newStore()}}
		l.settle(LazyTOC, "")
		use(t, l)
	})
}

// FuzzFooter takes any bytes for the end of an eStargz or zstd:chunked blob.
func FuzzFooter(f *testing.F) {
	blob, _ := packEstargz(0)(f, makeTar(f, fuzzItems()...))
	f.Add(blob[len(blob)-60:], false)
	blob, _ = packZstdChunked(f, makeTar(f, fuzzItems()...))
	f.Add(blob[len(blob)-60:], true)
	f.Fuzz(func(t *testing.T, tail []byte, z bool) {
		form := formGzipParts
		if z {
			form = formZstdParts
		}
		size := int64(len(tail)) + 1000
		off, end, err := footer(tail, size, form)
		if err == nil && (off <= 0 || off >= end || end > size) {
			t.Errorf("TOC at [%d,%d) of %d", off, end, size)
		}
	})
}

// FuzzName cleans any name: what is accepted stays below the root and is its own cleaned name.
func FuzzName(f *testing.F) {
	for _, s := range []string{"", "/", "./", "a/../b", "../a", "a//b/", "\xff/.wh.x", ".wh..wh..opq", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := cleanName(s)
		if err != nil {
			return
		}
		again, err := cleanName(name)
		if err != nil || again != name || strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/") || strings.Contains("/"+name+"/", "/../") {
			t.Errorf("%q -> %q -> %q, %v", s, name, again, err)
		}
		whiteout(name)
	})
}
