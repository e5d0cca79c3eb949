package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// fbWriter writes flatbuffers front to back: a table, then what it refers to.
type fbWriter struct{ b []byte }

// node is a table's fields, by number: int64, uint32, byte, string, []byte, *node, []*node or []string.
type node map[int]any

func (w *fbWriter) u32(v uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, v) }

func (w *fbWriter) patch(at int) {
	binary.LittleEndian.PutUint32(w.b[at:], uint32(len(w.b)-at))
}

func (w *fbWriter) table(n node) {
	top := 0
	for k := range n {
		top = max(top, k+1)
	}
	w.b = append(w.b, make([]byte, -len(w.b)&7)...)
	vtable := len(w.b)
	w.b = append(w.b, make([]byte, 4+2*top+(4+2*top)%8)...)
	start := len(w.b)
	binary.LittleEndian.PutUint16(w.b[vtable:], uint16(4+2*top))
	w.u32(uint32(start - vtable))
	later := make(map[int]int)
	for k := range top {
		v, ok := n[k]
		if !ok {
			continue
		}
		binary.LittleEndian.PutUint16(w.b[vtable+4+2*k:], uint16(len(w.b)-start))
		switch v := v.(type) {
		case int64:
			w.b = binary.LittleEndian.AppendUint64(w.b, uint64(v))
		case uint32:
			w.u32(v)
		case byte:
			w.b = append(w.b, v, 0, 0, 0)
		default:
			later[k] = len(w.b)
			w.u32(0)
		}
	}
	for k := range top {
		at, ok := later[k]
		if ok {
			w.value(at, n[k])
		}
	}
}

// value writes v and lets the offset at at point to it.
func (w *fbWriter) value(at int, v any) {
	switch v := v.(type) {
	case string:
		w.value(at, []byte(v))
	case []byte:
		w.patch(at)
		w.u32(uint32(len(v)))
		w.b = append(append(w.b, v...), 0)
	case node:
		// A table's place is behind its vtable: write it aside to know where.
		aside := &fbWriter{b: bytes.Clone(w.b)}
		aside.table(v)
		top := 0
		for k := range v {
			top = max(top, k+1)
		}
		start := len(w.b) + -len(w.b)&7 + 4 + 2*top + (4+2*top)%8
		w.b = aside.b
		binary.LittleEndian.PutUint32(w.b[at:], uint32(start-at))
	case []node:
		w.patch(at)
		w.u32(uint32(len(v)))
		first := len(w.b)
		w.b = append(w.b, make([]byte, 4*len(v))...)
		for i := range v {
			w.value(first+4*i, v[i])
		}
	case []string:
		w.patch(at)
		w.u32(uint32(len(v)))
		first := len(w.b)
		w.b = append(w.b, make([]byte, 4*len(v))...)
		for i := range v {
			w.value(first+4*i, v[i])
		}
	}
}

// makeZTOC makes what SOCI makes of blob, a gzip file or a tar. short makes the spans' digests end where newer versions let
// them end; first writes the first version of checkpoints.
func makeZTOC(t testing.TB, blob, tarball []byte, short, first bool, change func(node)) []byte {
	t.Helper()
	info := node{infoAlgorithm: byte(2), infoPoints: make([]byte, 20)}
	if blob[0] == 0x1f {
		info = gzipInfo(t, blob, tarball, short, first)
	}
	var files []node
	pos := &source{r: bytes.NewReader(tarball)}
	tr := tar.NewReader(pos)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		typ := map[byte]string{'0': "reg", '1': "hardlink", '2': "symlink", '3': "char", '4': "block", '5': "dir", '6': "fifo"}[h.Typeflag]
		mtime, _ := h.ModTime.MarshalText()
		n := node{
			fileName: h.Name, fileType: typ, fileOffset: pos.n, fileSize: h.Size, fileLink: h.Linkname, fileMode: h.Mode, fileUID: uint32(h.Uid),
			fileGID: uint32(h.Gid), fileTime: string(mtime), fileMajor: h.Devmajor, fileMinor: h.Devminor,
		}
		var pax []node
		for k, v := range h.PAXRecords {
			pax = append(pax, node{0: k, 1: v})
		}
		n[filePAX] = pax
		files = append(files, n)
	}
	root := node{
		ztocVersion: "0.9", 1: "a test", ztocBlobSize: int64(len(blob)), ztocTarSize: int64(len(tarball)),
		ztocTOC: node{0: files}, ztocInfo: info,
	}
	if change != nil {
		change(root)
	}
	w := &fbWriter{b: make([]byte, 4)}
	w.value(0, root)
	return w.b
}

func gzipInfo(t testing.TB, blob, tarball []byte, short, first bool) node {
	g := newGzipReader(bytes.NewReader(blob), true)
	g.Read(make([]byte, 1))
	begin := g.begin
	if _, err := io.Copy(io.Discard, g); err != nil {
		t.Fatal(err)
	}
	spans := g.spans()
	points := binary.LittleEndian.AppendUint32(nil, uint32(len(spans)))
	points = binary.LittleEndian.AppendUint64(points, spanLen)
	var sums []string
	for i := range spans {
		s := &spans[i]
		if s.window == nil {
			s.off, s.window = begin, make([]byte, 32<<10)
		}
		in, bits := s.off, byte(0)
		if s.bit != 0 {
			in, bits = s.off+1, 8-s.bit
		}
		if i > 0 || !first {
			points = binary.LittleEndian.AppendUint64(points, uint64(in))
			points = binary.LittleEndian.AppendUint64(points, uint64(s.uoff))
			points = append(append(points, bits), s.window...)
		}
	}
	for i, s := range spans {
		end := int64(len(blob))
		if i+1 < len(spans) {
			end = spans[i+1].off
			if spans[i+1].bit != 0 && !short {
				end++
			}
		}
		sums = append(sums, sum(blob[s.off:end]))
	}
	return node{infoMaxSpan: uint32(len(spans) - 1), infoSums: sums, infoPoints: points}
}

// TestZTOC reads a layer by a zTOC, at random, and completes it.
func TestZTOC(t *testing.T) {
	items, _ := sample(t)
	x := file("x\xff", []byte("1"))
	x.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b\x00"}
	x.ModTime = time.Unix(-5, 5e8)
	x.Format = tar.FormatPAX
	tarball := makeTar(t, append(items, x)...)
	plainHeader, _ := command("pigz", "-n", "-p1")(t, tarball)
	named, _ := goGzip(6, 0)(t, tarball)
	tests := []struct {
		name         string
		blob         []byte
		typ          string
		short, first bool
	}{
		{"gzip", named, typeGzip, false, false},
		{"short spans", named, typeGzip, true, false},
		{"first version", plainHeader, typeGzip, false, true},
		{"tar", tarball, typeTar, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := descriptor(tt.blob, tt.typ, nil)
			d.DiffID = sum(tarball)
			st := newStore()
			o := Options{Dir: t.TempDir(), Chunks: st}
			z := makeZTOC(t, tt.blob, tarball, tt.short, tt.first, nil)
			if err := ImportZTOC(o.Dir, d.Digest, d.Size, d.DiffID, bytes.NewReader(z)); err != nil {
				t.Fatal(err)
			}
			mb := &memBlob{data: tt.blob}
			l := open(t, d, mb, o)
			if m, why := l.Mode(); m != LazyIndex || l.Trusted() {
				t.Fatalf("mode %s (%s)", m, why)
			}
			es := allEntries(t, l)
			if got := describe(es[len(es)-1]); got != "x\xff 100644 0:0 size 1 at -5.500000000 user.a=\"b\\x00\"" {
				t.Error(got)
			}
			i := find(t, es, "last")
			if !bytes.Equal(readEntry(t, l, st, i, 10, 100), text(10, 3000)[10:110]) {
				t.Error("other bytes")
			}
			if mb.bytes > 5<<20 || mb.opens > 0 {
				t.Errorf("%d bytes for one file", mb.bytes)
			}
			readAll(t, l, st, items)
			readAll(t, l, nil, items)
			if err := l.Complete(t.Context()); err != nil || !l.Trusted() {
				t.Errorf("Complete: %v", err)
			}
			readAll(t, l, st, items)
		})
	}
}

// TestZTOCLies has zTOCs that are not of their layer: refused at once, or found out.
func TestZTOCLies(t *testing.T) {
	tarball := makeTar(t, file("a", text(1, 3<<20)), file("b", text(2, 1000)))
	blob := gz(t, tarball)
	d := descriptor(blob, typeGzip, nil)
	fileOf := func(root node, n int) node { return root[ztocTOC].(node)[0].([]node)[n] }
	tests := []struct {
		name   string
		change func(node)
		want   string // of Import; "" when only Fetch or Complete can tell
	}{
		{"version", func(r node) { r[ztocVersion] = "7" }, "version"},
		{"size", func(r node) { r[ztocBlobSize] = int64(5) }, "blob of 5"},
		{"compression", func(r node) { r[ztocInfo].(node)[infoAlgorithm] = byte(9) }, "compression"},
		{"no checkpoints", func(r node) { delete(r[ztocInfo].(node), infoPoints) }, "without checkpoints"},
		{"few digests", func(r node) { r[ztocInfo].(node)[infoSums] = []string{} }, "do not match"},
		{"no digest", func(r node) { s := r[ztocInfo].(node)[infoSums].([]string); s[0] = "x" }, "digest"},
		{"many checkpoints", func(r node) { r[ztocInfo].(node)[infoPoints].([]byte)[3] = 0x7f }, "do not match"},
		{"checkpoint far out", func(r node) { r[ztocInfo].(node)[infoPoints].([]byte)[12+7] = 0x7f }, "span 0"},
		{"file beyond the tar", func(r node) { fileOf(r, 1)[fileOffset] = int64(len(tarball)) }, "lies where"},
		{"endless file", func(r node) { fileOf(r, 1)[fileSize] = int64(1) << 60 }, "lies where"},
		{"negative offset", func(r node) { fileOf(r, 1)[fileOffset] = int64(-1) }, "lies where"},
		{"backwards", func(r node) { fileOf(r, 1)[fileOffset] = int64(0) }, "out of order"},
		{"type", func(r node) { fileOf(r, 1)[fileType] = "door" }, "unknown type"},
		{"escape", func(r node) { fileOf(r, 1)[fileName] = "../x" }, "leaves"},
		{"sparse", func(r node) { fileOf(r, 1)[filePAX] = []node{{0: "GNU.sparse.major", 1: "1"}} }, "sparse"},
		{"other span digest", func(r node) { s := r[ztocInfo].(node)[infoSums].([]string); s[0] = sum(nil) }, ""},
		{"other window", func(r node) { p := r[ztocInfo].(node)[infoPoints].([]byte); clear(p[len(p)-32<<10:]) }, ""},
		{"other mode", func(r node) { fileOf(r, 0)[fileMode] = int64(0o4755) }, ""},
		{"other place", func(r node) { fileOf(r, 1)[fileOffset] = fileOf(r, 1)[fileOffset].(int64) + 7 }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := newStore()
			o := Options{Dir: t.TempDir(), Chunks: st}
			err := ImportZTOC(o.Dir, d.Digest, d.Size, "", bytes.NewReader(makeZTOC(t, blob, tarball, false, false, tt.change)))
			if tt.want != "" {
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("err = %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			l := open(t, d, &memBlob{data: blob}, o)
			_, err = l.Chunk(t.Context(), 0, 2<<20)
			if err == nil {
				err = l.Complete(context.Background())
			} else if cerr := l.Complete(context.Background()); tt.name == "other mode" || cerr != nil && !errors.Is(cerr, ErrCorrupt) {
				t.Errorf("Complete: %v", cerr)
			}
			if tt.name == "other window" && err == nil {
				return // nothing in the layer refers to the window: every chunk was right
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("err = %v", err)
			}
		})
	}
}

// FuzzZTOC takes any bytes for a zTOC.
func FuzzZTOC(f *testing.F) {
	tarball := makeTar(f, fuzzItems()...)
	blob := gz(f, tarball)
	f.Add(makeZTOC(f, blob, tarball, false, false, nil))
	f.Add(makeZTOC(f, tarball, tarball, false, false, nil))
	f.Fuzz(func(t *testing.T, z []byte) {
		for _, b := range [][]byte{blob, tarball} {
			dir := t.TempDir()
			d := descriptor(b, "", nil)
			if ImportZTOC(dir, d.Digest, d.Size, "", bytes.NewReader(z)) != nil {
				continue
			}
			l, err := Open(t.Context(), d, &memBlob{data: b}, Options{Dir: dir, Chunks: newStore()})
			if err != nil {
				t.Fatal(err)
			}
			if m, _ := l.Mode(); m != LazyIndex {
				t.Errorf("an imported zTOC is not used: %s", m)
			}
			use(t, l)
		}
	})
}
