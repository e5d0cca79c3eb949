package layer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// MaxZTOC is the longest SOCI zTOC that ImportZTOC takes, bytes.
const MaxZTOC = 512 << 20

// Field numbers of a zTOC's tables: ztoc/fbs/ztoc.fbs of soci-snapshotter, the same in versions 0.9 and 1.0.
const (
	ztocVersion, ztocBlobSize, ztocTarSize, ztocTOC, ztocInfo = 0, 2, 3, 4, 5

	fileName, fileType, fileOffset, fileSize, fileLink, fileMode, fileUID, fileGID = 0, 1, 2, 3, 4, 5, 6, 7
	fileTime, fileMajor, fileMinor, filePAX                                        = 10, 11, 12, 13

	infoAlgorithm, infoMaxSpan, infoSums, infoPoints = 0, 1, 2, 3
)

// ImportZTOC keeps a SOCI zTOC as the index of the layer called digest, whose blob has size bytes and whose diffID is
// diffID, or "" when that is not known. It is the caller who holds the zTOC's own digest against the SOCI index that names
// it.
//
// A zTOC names the digests of its spans, which are checked, but not those of files, so that Chunk has to fetch a chunk in
// order to name it. And it is not named by the layer: like an index that Import takes it is not trusted before the layer is
// complete, see Trusted.
func ImportZTOC(dir, digest string, size int64, diffID string, r io.Reader) error {
	id, err := parseDigest(digest)
	if err != nil {
		return fmt.Errorf("import zTOC of layer %q: %w", short(digest), err)
	}
	b, err := io.ReadAll(io.LimitReader(r, MaxZTOC+1))
	if err != nil {
		return fmt.Errorf("import zTOC of layer %s: %w", digest, err)
	}
	t, err := parseZTOC(b, size)
	if err != nil {
		return fmt.Errorf("import zTOC of layer %s: %w", digest, err)
	}
	want, _ := parseDigest(diffID) // zero when it is not known
	if b, err = appendIndex(nil, t, id, want, Digest{}); err == nil && disproved(dir, id, b) {
		err = corrupt("%w", ErrFalseIndex)
	}
	if err == nil {
		err = writeFile(dir, pulledName(id), b)
	}
	if err != nil {
		return fmt.Errorf("import zTOC of layer %s: %w", digest, err)
	}
	return nil
}

// parseZTOC makes a table of a zTOC for a blob of size bytes. Its chunks have no digests yet.
func parseZTOC(b []byte, size int64) (*table, error) {
	if len(b) > MaxZTOC {
		return nil, refused("zTOC: longer than %d bytes", MaxZTOC)
	}
	f := &flatbuf{b: b}
	root := f.root()
	if v := f.str(root, ztocVersion); f.err != nil || v != "0.9" && !strings.HasPrefix(v, "1.") {
		return nil, corrupt("zTOC: of the unknown version %q", short(v))
	}
	if n := f.int64(root, ztocBlobSize); n != size {
		return nil, corrupt("zTOC: of a blob of %d bytes, not of %d", n, size)
	}
	t := &table{blob: size, end: size, tar: f.int64(root, ztocTarSize)}
	if err := t.ztocSpans(f, f.table(root, ztocInfo)); err != nil {
		return nil, err
	}
	if err := t.ztocFiles(f, f.table(root, ztocTOC)); err != nil {
		return nil, err
	}
	if f.err != nil {
		return nil, corrupt("zTOC: %w", f.err)
	}
	if err := t.validate(); err != nil {
		return nil, err
	}
	return t, t.validateNames()
}

// ztocSpans takes the spans of a zTOC: for an uncompressed tar there is nothing to take, for gzip they are checkpoints
// (ztoc/compression/gzip_zinfo.c: how many (4 bytes), span length (8), then for each the offsets in the blob and in the tar
// (8 each), bits (1) and window).
func (t *table) ztocSpans(f *flatbuf, info fbTable) error {
	const header, window = 4 + 8, 32 << 10
	const point = 8 + 8 + 1 + window
	switch algorithm := f.byte(info, infoAlgorithm, 1); algorithm {
	case 1:
		t.form = formGzip
	case 2:
		t.form, t.spans = formTar, []spanRec{{}}
		return nil
	default:
		return corrupt("zTOC: of the unknown compression %d", algorithm)
	}
	points := f.data(info, infoPoints)
	sums, count := f.vector(info, infoSums, 4)
	if len(points) < header || f.err != nil {
		return corrupt("zTOC: without checkpoints")
	}
	n := uint64(binary.LittleEndian.Uint32(points))
	points = points[header:]
	if uint64(len(points)) == (n-1)*point && n > 0 {
		// The first version leaves out the first one, which it takes to be behind a header without any fields.
		first := make([]byte, point)
		first[0] = 10
		points = append(first, points...)
	}
	if n == 0 || uint64(len(points)) != n*point || count != n {
		return corrupt("zTOC: checkpoints and digests of spans do not match")
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(64<<10))
	if err != nil {
		return err
	}
	defer enc.Close()
	for i := range n {
		p := points[i*point : (i+1)*point]
		s := spanRec{off: int64(binary.LittleEndian.Uint64(p)), uoff: int64(binary.LittleEndian.Uint64(p[8:]))}
		if bits := p[16]; bits != 0 { // so many of the byte before belong to the span
			s.off--
			s.bit = 8 - bits&7
		}
		z := enc.EncodeAll(p[17:], nil)
		s.window, s.windowLen = uint32(len(t.windows)), uint32(len(z))
		t.windows = append(t.windows, z...)
		t.spans = append(t.spans, s)
		str := f.follow(sums + 4*i)
		sum, err := parseDigest(string(f.bytes(str+4, f.u32(str))))
		if err != nil {
			return err
		}
		t.sums = append(t.sums, sum)
	}
	return nil
}

// ztocFiles takes the files of a zTOC.
func (t *table) ztocFiles(f *flatbuf, toc fbTable) error {
	b := builder{t: t}
	files, n := f.vector(toc, 0, 4)
	if n > MaxEntries {
		return refused("zTOC: more than %d entries", MaxEntries)
	}
	for i := range n {
		e, off, err := ztocEntry(f, fbTable(f.follow(files+4*i)))
		if err == nil && f.err != nil {
			err = corrupt("zTOC: %w", f.err)
		}
		if err != nil {
			return err
		}
		num, ok, err := b.add(e)
		if err != nil {
			return err
		}
		if r := t.entries[max(num, 0):]; ok && r[0].kind == Plain && regular(r[0].mode) {
			if err := t.ztocChunks(num, off); err != nil {
				return err
			}
		}
	}
	return nil
}

func ztocEntry(f *flatbuf, m fbTable) (e Entry, off int64, err error) {
	typ, ok := tocType(f.str(m, fileType))
	if !ok {
		return e, 0, refused("zTOC: %q is of an unknown type", short(f.str(m, fileName)))
	}
	var mtime time.Time
	if err := mtime.UnmarshalText(f.data(m, fileTime)); err != nil {
		return e, 0, corrupt("zTOC: %w", err)
	}
	a := attributes{
		name: f.str(m, fileName), link: f.str(m, fileLink), mode: f.int64(m, fileMode), uid: f.uint32(m, fileUID), gid: f.uint32(m, fileGID),
		major: f.int64(m, fileMajor), minor: f.int64(m, fileMinor), size: f.int64(m, fileSize), mtime: mtime, typ: typ,
	}
	if e, _, err = a.entry(); err != nil {
		return e, 0, err
	}
	pax, n := f.vector(m, filePAX, 4)
	for i := range n {
		x := fbTable(f.follow(pax + 4*i))
		key := f.str(x, 0)
		if strings.HasPrefix(key, "GNU.sparse.") {
			return e, 0, corrupt("zTOC: where the data of the sparse file %q is cannot be told from it", short(a.name))
		}
		if name, ok := strings.CutPrefix(key, xattrRecord); ok && f.err == nil {
			e.Xattrs = append(e.Xattrs, Xattr{Name: name, Value: bytes.Clone(f.data(x, 1))})
		}
	}
	return e, f.int64(m, fileOffset), nil
}

// ztocChunks cuts the file that is entry num, whose data begins at tar offset at.
func (t *table) ztocChunks(num int, at int64) error {
	e := &t.entries[num]
	if e.size == 0 {
		return nil
	}
	if at < 0 || e.size > t.tar || at > t.tar-e.size || e.size/ChunkSize >= int64(MaxChunks-len(t.chunks)) {
		return corrupt("zTOC: a file lies where none can be")
	}
	if at < t.spans[0].uoff {
		return corrupt("zTOC: a file lies in front of the first span")
	}
	for off := int64(0); off < e.size; off += ChunkSize {
		span := t.spanAt(at + off)
		t.chunks = append(t.chunks, chunkRec{
			offset: off, span: span, inner: at + off - t.spans[span].uoff, size: uint32(min(ChunkSize, e.size-off)),
		})
		e.chunks++
	}
	return nil
}

// forget removes the imported index of a layer.
func (l *Layer) forget() {
	if l.o.Dir != "" {
		os.Remove(filepath.Join(l.o.Dir, pulledName(l.id)))
	}
}
