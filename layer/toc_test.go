package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
)

// TestTOCTrust opens eStargz layers whose TOC nobody vouches for: they are streamed, and all is well.
func TestTOCTrust(t *testing.T) {
	items := []item{dir("a"), file("a/f", text(1, 1<<20)), file("g", text(2, 100))}
	tarball := makeTar(t, items...)
	blob, ann := packEstargz(0)(t, tarball)
	zblob, zann := packZstdChunked(t, tarball) // without the annotation of its place, by its footer
	delete(zann, zstdchunked.ManifestPositionAnnotation)
	other := map[string]string{estargz.TOCJSONDigestAnnotation: sum([]byte("other"))}
	odd, oddAnn := packEstargz(0)(t, makeTar(t, file("caf\xe9", []byte("1"))))
	tests := []struct {
		name string
		blob []byte
		ann  map[string]string
		mode Mode
		why  string
	}{
		{"vouched", blob, ann, LazyTOC, "vouched for"},
		{"not vouched", blob, nil, Streaming, "vouches for no TOC"},
		{"other digest", blob, other, Streaming, "not the one"},
		{"malformed digest", blob, map[string]string{estargz.TOCJSONDigestAnnotation: "sha256:12"}, Streaming, "vouches for no TOC"},
		{"zstd", zblob, zann, LazyTOC, "vouched for"},
		{"no footer", gz(t, tarball), ann, Streaming, "no footer"},
		{"a name that JSON cannot hold", odd, oddAnn, Streaming, "cannot be told"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mb := &memBlob{data: tt.blob, gate: newGate(0)}
			typ := typeGzip
			if tt.name == "zstd" {
				typ = typeZstd
			}
			l := open(t, descriptor(tt.blob, typ, tt.ann), mb, Options{})
			if m, why := l.Mode(); m != tt.mode || !strings.Contains(why, tt.why) {
				t.Errorf("mode %s (%s), want %s (%s)", m, why, tt.mode, tt.why)
			}
			if lazy := Lazy("", descriptor(tt.blob, typeGzip, tt.ann)); tt.mode == LazyTOC && !lazy {
				t.Error("not Lazy")
			}
			mb.gate.open(len(tt.blob))
			if es := allEntries(t, l); tt.name == "a name that JSON cannot hold" && es[0].Name != "caf\xe9" {
				t.Errorf("name %q", es[0].Name)
			}
		})
	}
}

func gz(t testing.TB, b []byte) []byte {
	out, _ := goGzip(gzip.DefaultCompression, 0)(t, b)
	return out
}

// TestTOCIndexNeedsItsManifest keeps an index made by a TOC from those whose manifest does not vouch for it.
func TestTOCIndexNeedsItsManifest(t *testing.T) {
	blob, ann := packEstargz(0)(t, makeTar(t, file("f", text(1, 1000))))
	o := Options{Dir: t.TempDir()}
	modes := []struct {
		ann  map[string]string
		want Mode
	}{{ann, LazyTOC}, {ann, LazyTOC}, {nil, Streaming}, {nil, LazyIndex}, {ann, LazyTOC}}
	for i, m := range modes {
		mb := &memBlob{data: blob, gate: newGate(0)}
		l := open(t, descriptor(blob, typeGzip, m.ann), mb, o)
		if got, why := l.Mode(); got != m.want {
			t.Errorf("open %d: %s (%s), want %s", i, got, why, m.want)
		}
		mb.gate.open(len(blob))
		<-l.Done()
		l.owned.Wait() // until the index is kept
	}
}

// TestTOCFile shows the TOC where other unpackers show it.
func TestTOCFile(t *testing.T) {
	tests := []struct {
		name     string
		items    []item
		lossless bool
	}{
		{"data last", []item{dir("d"), file("f", text(1, 5<<20))}, false},
		{"directory last", []item{file("f", text(1, 1000)), dir("d")}, false},
		{"zeros last", []item{file("f", make([]byte, 3000))}, false},
		{"nothing but directories", []item{dir("d")}, false},
		{"kept end", []item{dir("d"), file("f", text(1, 5<<20))}, true},
		{"kept end behind a directory", []item{file("f", text(1, 100)), dir("d")}, true},
		{"kept end without data", []item{dir("d")}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			w := estargz.NewWriter(&out)
			appendTar := w.AppendTar
			if tt.lossless {
				appendTar = w.AppendTarLossLess
			}
			if err := appendTar(bytes.NewReader(makeTar(t, tt.items...))); err != nil {
				t.Fatal(err)
			}
			toc, err := w.Close()
			if err != nil {
				t.Fatal(err)
			}
			blob := out.Bytes()
			var shown [2]string
			for i, ann := range []map[string]string{{estargz.TOCJSONDigestAnnotation: toc.String()}, nil} {
				st := newStore()
				l := open(t, descriptor(blob, typeGzip, ann), &memBlob{data: blob}, Options{Chunks: st})
				for n, e := range allEntries(t, l) {
					shown[i] += describe(e)
					if regular(e.Mode) && e.Kind == Plain {
						shown[i] += sum(readEntry(t, l, st, n, 0, e.Size))
					}
					shown[i] += "\n"
				}
			}
			if shown[0] != shown[1] {
				t.Errorf("by its TOC\n%s\nstreamed\n%s", shown[0], shown[1])
			}
			if strings.Contains(shown[0], estargz.TOCTarName) == tt.lossless {
				t.Errorf("TOC shown is %v", !tt.lossless)
			}
		})
	}
}

// TestTOCRequests counts what opening an eStargz costs.
func TestTOCRequests(t *testing.T) {
	var items []item
	for i := range 300 {
		items = append(items, file(fmt.Sprintf("dir/file%d", i), noise(uint64(i), 3000)))
	}
	blob, ann := packEstargz(0)(t, makeTar(t, items...))
	mb := &memBlob{data: blob}
	open(t, descriptor(blob, typeGzip, ann), mb, Options{})
	if mb.reads != 1 || mb.opens != 0 {
		t.Errorf("%d reads and %d streams to open", mb.reads, mb.opens)
	}
	big := &tail{b: &memBlob{data: blob}}
	if err := big.read(context.Background(), int64(len(blob))-60); err != nil {
		t.Fatal(err)
	}
	off, end, err := footer(big.mem, int64(len(blob)), formGzipParts)
	if err != nil {
		t.Fatal(err)
	}
	if mem, err := big.at(context.Background(), off, end-off); err != nil || !bytes.Equal(mem, blob[off:end]) {
		t.Error("a TOC longer than the tail is cut")
	}
}

// TestTOCHint opens eStargz layers whose last chunk is long: it is not fetched for the sake of what is behind it, and where the TOC's
// place is known nothing else is. A place that is wrong does no harm.
func TestTOCHint(t *testing.T) {
	var items []item
	for i := range 3000 {
		items = append(items, file(fmt.Sprintf("dir/file%d", i), noise(uint64(i), 100)))
	}
	long := noise(1, 3<<20)
	items = append(items, file("last", long), dir("end"), dir("end/of"))
	blob, ann := packEstargz(0)(t, makeTar(t, items...))
	d := descriptor(blob, typeGzip, ann)
	off, end, err := footer(blob, int64(len(blob)), formGzipParts)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(blob))
	if end-off <= minTail {
		t.Fatalf("a TOC of %d bytes proves nothing", end-off)
	}
	for name, tt := range map[string]struct {
		o     Options
		reads int
		bytes int64
	}{
		"unknown":       {Options{Tail: 1}, 2, size - off + gzipEnd},
		"known":         {Options{TOC: off}, 1, size - off + gzipEnd},
		"the end":       {Options{TOC: size, Tail: 1}, 2, size - off + gzipEnd},
		"beyond":        {Options{TOC: 1 << 60, Tail: 1}, 2, size - off + gzipEnd},
		"negative":      {Options{TOC: -1, Tail: 1}, 2, size - off + gzipEnd},
		"a little late": {Options{TOC: off + 100}, 2, size - off + gzipEnd},
		"too early":     {Options{TOC: off - 1000}, 1, size - off + 1000 + gzipEnd},
		"the start":     {Options{TOC: 9}, 2, size - off + gzipEnd}, // which is no TOC's place
	} {
		mb := &memBlob{data: blob}
		l := open(t, d, mb, tt.o)
		if m, why := l.Mode(); m != LazyTOC {
			t.Errorf("%s: mode %s (%s)", name, m, why)
		}
		if mb.reads != tt.reads || mb.bytes > tt.bytes {
			t.Errorf("%s: %d reads of %d bytes, want %d of at most %d", name, mb.reads, mb.bytes, tt.reads, tt.bytes)
		}
		if l.TOC() != off {
			t.Errorf("%s: the TOC is at %d, not at %d", name, l.TOC(), off)
		}
		if first, n := Opening(d, tt.o); first+n != size || tt.reads == 1 && n != mb.bytes {
			t.Errorf("%s: Opening is [%d,+%d), %d bytes were read", name, first, n, mb.bytes)
		}
		if es := allEntries(t, l); es[len(es)-1].Name != estargz.TOCTarName {
			t.Errorf("%s: the last entry is %s", name, es[len(es)-1].Name)
		}
	}
}

// TestSmallBlob reads a small blob once, and all that is in it from memory.
func TestSmallBlob(t *testing.T) {
	items := []item{dir("d"), file("d/a", text(1, 20_000)), file("d/b", noise(2, 50_000))}
	for _, f := range forms() {
		if f.mode != LazyTOC {
			continue
		}
		blob, ann := f.pack(t, makeTar(t, items...))
		if len(blob) > smallBlob {
			t.Fatalf("%s: %d bytes", f.name, len(blob))
		}
		mb := &memBlob{data: blob}
		l := open(t, descriptor(blob, f.typ, ann), mb, Options{})
		for i, e := range allEntries(t, l) {
			for _, it := range items {
				if it.Name == e.Name && !bytes.Equal(readEntry(t, l, nil, i, 0, e.Size), it.data) {
					t.Errorf("%s: %s has other bytes", f.name, e.Name)
				}
			}
		}
		if mb.reads != 1 || mb.opens != 0 || mb.bytes != int64(len(blob)) {
			t.Errorf("%s: %d reads, %d streams, %d bytes of %d", f.name, mb.reads, mb.opens, mb.bytes, len(blob))
		}
	}
}

// chunked makes a blob of zstd frames with a TOC in a skippable frame, as containers/storage does.
func chunked(t testing.TB, frames [][]byte, toc func(offsets []int64) any) ([]byte, map[string]string) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	var blob []byte
	var offsets []int64
	for _, f := range frames {
		offsets = append(offsets, int64(len(blob)))
		blob = enc.EncodeAll(f, blob)
	}
	j, err := json.Marshal(toc(offsets))
	if err != nil {
		t.Fatal(err)
	}
	packed := enc.EncodeAll(j, nil)
	off := len(blob) + 8
	n := len(packed)
	blob = append(blob, 0x50, 0x2a, 0x4d, 0x18, byte(n), byte(n>>8), byte(n>>16), 0)
	blob = append(blob, packed...)
	return blob, map[string]string{
		zstdchunked.ManifestChecksumAnnotation: sum(packed),
		zstdchunked.ManifestPositionAnnotation: fmt.Sprintf("%d:%d:%d:1", off, n, len(j)),
	}
}

// TestZstdChunked reads what containers/storage writes beyond eStargz's fields.
func TestZstdChunked(t *testing.T) {
	a, b := text(1, 50_000), noise(2, 70_000)
	const hole = 6 << 20
	content := append(append(bytes.Clone(a), make([]byte, hole)...), b...)
	frames := [][]byte{make([]byte, 512), a, make([]byte, hole), append(bytes.Clone(b), make([]byte, 300)...)}
	good := func(off []int64) any {
		return map[string]any{"version": 1, "tarSplitDigest": "sha256:x", "entries": []map[string]any{
			{"type": "dir", "name": "d/", "mode": 0o755, "modtime": "2001-02-03T04:05:06.5Z"},
			{"type": "reg", "name": "d/f", "mode": 0o644, "size": len(content), "offset": off[1], "endOffset": off[2], "digest": sum(content),
				"chunkSize": len(a), "chunkDigest": sum(a), "xattrs": map[string]string{"user.x": "AAE="}},
			{"type": "chunk", "name": "d/f", "offset": off[2], "chunkOffset": len(a), "chunkSize": hole, "chunkType": "zeros"},
			{"type": "chunk", "name": "d/f", "offset": off[3], "chunkOffset": len(a) + hole, "chunkSize": len(b), "chunkDigest": sum(b)},
			{"type": "symlink", "name": "l", "linkName": "d/f", "mode": 0o777},
		}}
	}
	blob, ann := chunked(t, frames, good)
	o := Options{Dir: t.TempDir()}
	for range 2 {
		mb := &memBlob{data: blob}
		l := open(t, descriptor(blob, typeZstd, ann), mb, o)
		if m, why := l.Mode(); m != LazyTOC || mb.reads > 1 {
			t.Fatalf("mode %s (%s) after %d reads", m, why, mb.reads)
		}
		es := allEntries(t, l)
		if got := describe(es[0]); got != "d 40755 0:0 at 981173106.500000000" {
			t.Error(got)
		}
		if got := describe(es[1]); got != fmt.Sprintf("d/f 100644 0:0 size %d at 0.000000000 user.x=\"\\x00\\x01\"", len(content)) && !strings.Contains(got, "user.x") {
			t.Error(got)
		}
		if !bytes.Equal(readEntry(t, l, nil, 1, 0, int64(len(content))), content) {
			t.Error("d/f has other bytes")
		}
	}
}

// TestHostileTOC has TOCs that lie although their digest is right. They are not used, whatever they say.
func TestHostileTOC(t *testing.T) {
	reg := func(m map[string]any) map[string]any {
		out := map[string]any{"type": "reg", "name": "f", "size": 100, "offset": 0, "digest": sum(nil), "chunkDigest": sum(nil)}
		for k, v := range m {
			out[k] = v
		}
		return out
	}
	chunk := func(m map[string]any) map[string]any {
		out := reg(m)
		out["type"] = "chunk"
		return out
	}
	tests := map[string][]map[string]any{
		"no digest":         {reg(map[string]any{"digest": "", "chunkDigest": ""})},
		"negative offset":   {reg(map[string]any{"offset": -5})},
		"beyond the blob":   {reg(map[string]any{"offset": 1 << 40})},
		"backwards":         {reg(map[string]any{"offset": 10}), reg(map[string]any{"offset": 5})},
		"overlapping":       {reg(map[string]any{"innerOffset": 10}), reg(map[string]any{"innerOffset": 50})},
		"inner":             {reg(map[string]any{"innerOffset": MaxInner + 1})},
		"negative inner":    {reg(map[string]any{"innerOffset": -1})},
		"huge chunk":        {reg(map[string]any{"size": MaxChunkSize + 1})},
		"huge file":         {reg(map[string]any{"size": int64(1) << 60, "chunkSize": 1})},
		"negative size":     {reg(map[string]any{"size": -1})},
		"gap":               {reg(map[string]any{"chunkSize": 10}), chunk(map[string]any{"chunkOffset": 20})},
		"not covered":       {reg(map[string]any{"chunkSize": 10})},
		"too much":          {reg(map[string]any{"chunkSize": 110})},
		"chunk of nothing":  {chunk(nil)},
		"chunk of a dir":    {{"type": "dir", "name": "d"}, chunk(nil)},
		"type":              {{"type": "door", "name": "d"}},
		"time":              {{"type": "dir", "name": "d", "modtime": "yesterday"}},
		"escape":            {{"type": "dir", "name": "../d"}},
		"owner":             {{"type": "dir", "name": "d", "uid": -1}},
		"endless zeros":     {reg(map[string]any{"size": int64(1) << 50, "chunkType": "zeros"})},
		"not even an entry": {nil, {"name": 5}},
	}
	for name, entries := range tests {
		t.Run(name, func(t *testing.T) {
			blob, ann := chunked(t, [][]byte{makeTar(t, file("f", make([]byte, 100)))}, func([]int64) any {
				return map[string]any{"version": 1, "entries": entries}
			})
			l := open(t, descriptor(blob, typeZstd, ann), &memBlob{data: blob, gate: newGate(0)}, Options{})
			if m, why := l.Mode(); m != Streaming {
				t.Errorf("mode %s (%s)", m, why)
			}
		})
	}
}

// TestLyingChunk fetches a chunk whose place holds other bytes than its digest says.
func TestLyingChunk(t *testing.T) {
	blob, ann := chunked(t, [][]byte{text(1, 100)}, func([]int64) any {
		return map[string]any{"version": 1, "entries": []any{map[string]any{"type": "reg", "name": "f", "size": 100, "chunkDigest": sum([]byte("x"))}}}
	})
	mb := &memBlob{data: blob}
	st := newStore()
	l := open(t, descriptor(blob, typeZstd, ann), mb, Options{Chunks: st})
	c, err := l.Chunk(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	mb.reads = 0
	if data, err := l.Fetch(t.Context(), c); err == nil || data != nil {
		t.Errorf("Fetch: %d bytes, %v", len(data), err)
	}
	if mb.reads != 1 || len(st.m) != 0 { // what was kept of the small blob is not believed any more
		t.Errorf("%d reads, %d chunks stored", mb.reads, len(st.m))
	}
	if err := l.Complete(t.Context()); err == nil {
		t.Error("Complete is content")
	}
}

// TestLegacyFooter finds the TOC of a stargz.
func TestLegacyFooter(t *testing.T) {
	blob, ann := packEstargz(0)(t, makeTar(t, file("f", text(1, 100))))
	body := blob[:len(blob)-estargz.FooterSize]
	off, _, err := footer(blob, int64(len(blob)), formGzipParts)
	if err != nil {
		t.Fatal(err)
	}
	blob = append(bytes.Clone(body), estargz.CreateGzipFooter(fmt.Appendf(nil, "%016xSTARGZ", off))...)
	l := open(t, descriptor(blob, typeGzip, ann), &memBlob{data: blob}, Options{})
	if m, why := l.Mode(); m != LazyTOC {
		t.Errorf("mode %s (%s)", m, why)
	}
	readEntry(t, l, nil, 0, 0, 100)
}

// TestSummer cuts at the same places as the stream does.
func TestSummer(t *testing.T) {
	data := text(1, ChunkSize+100)
	s := newSummer()
	io.Copy(struct{ io.Writer }{s}, bytes.NewReader(data))
	c := s.finish()
	if len(c) != 2 || c[0].digest != sha256.Sum256(data[:ChunkSize]) || c[1].digest != sha256.Sum256(data[ChunkSize:]) || c[1].inner != 512+ChunkSize {
		t.Errorf("%+v", c)
	}
}
