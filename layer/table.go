package layer

import (
	"encoding/binary"
	"math"
	"sort"
)

// none marks an absent entry number.
const none = math.MaxUint32

// table is a layer's index as flat arrays, the same in memory while it grows and in its file (see index.go). Records
// have no pointers and no padding, so a file is mapped and used as it is. A table made by newTable may be appended to; one that
// has been opened from a file is read-only.
//
// Offsets and numbers in records are checked when they are used: a table that lies yields wrong entries, never a panic.
type table struct {
	form    form
	blob    int64  // size of the blob, bytes
	end     int64  // where the blob's file data ends, bytes: the start of a TOC, else blob
	tar     int64  // size of the uncompressed tar, bytes; 0 when only a TOC was seen
	diffID  Digest // of the tar; zero when only a TOC was seen
	entries []entryRec
	chunks  []chunkRec
	spans   []spanRec
	text    []byte // names, link targets, extended attributes
	windows []byte // zstd frames, one for each span that has a window
	// sums are the digests of the spans' bytes in the blob, where an imported index names these instead of those of
	// chunks; else empty.
	sums []Digest
}

// form is how the bytes of a layer's chunks are found in its blob.
type form uint8

const (
	formTar       form = iota + 1 // blob offsets are tar offsets
	formGzip                      // one tar through any number of gzip members; spans are inflate checkpoints or member starts
	formZstd                      // one tar through any number of zstd frames; spans are frame starts
	formGzipParts                 // spans are the gzip members a TOC names, tar offsets are unknown
	formZstdParts                 // spans are the zstd frames a TOC names, tar offsets are unknown
)

// parts says whether a span's place in the tar is unknown, so that nothing can be read through from one to the next.
func (f form) parts() bool { return f == formGzipParts || f == formZstdParts }

// entryRec is an Entry.
type entryRec struct {
	size     int64
	sec      int64
	nsec     uint32
	parent   uint32 // entry number of the parent; none for the root and what is in it
	name     uint32 // of the last component, in text
	link     uint32 // in text
	xattr    uint32 // in text
	xattrLen uint32
	chunk    uint32 // number of the first chunk
	chunks   uint32 // how many there are
	mode     uint32
	uid      uint32
	gid      uint32
	rdev     uint32
	nameLen  uint16
	linkLen  uint16
	kind     Kind
	_        [3]byte
}

// chunkRec is a Chunk and where it is in the blob. In the order of the table (span, inner) never decreases.
type chunkRec struct {
	digest Digest // zero when nobody knows it yet: see table.sums
	offset int64  // in the file
	inner  int64  // bytes from the start of the span to the chunk; of a sparse chunk: to its file's tar header
	span   uint32
	size   uint32 // with the flags below
}

const (
	chunkHole   = 1 << 31 // nothing but zeros, without any bytes in the blob
	chunkSparse = 1 << 30 // of a sparse file: its bytes are found by reading its tar entry from the header on
	chunkFlags  = chunkHole | chunkSparse
)

func (c *chunkRec) len() int64   { return int64(c.size &^ chunkFlags) }
func (c *chunkRec) hole() bool   { return c.size&chunkHole != 0 }
func (c *chunkRec) sparse() bool { return c.size&chunkSparse != 0 }

// spanRec is a place in the blob from where inflating can begin.
type spanRec struct {
	off       int64 // in the blob
	uoff      int64 // in the tar; 0 where parts() is true
	window    uint32
	windowLen uint32 // 0: a member or frame starts here, no window is needed
	bit       uint8  // of the byte at off, where the next deflate block begins
	_         [7]byte
}

func (t *table) str(off uint32, n int) []byte {
	if uint64(off)+uint64(n) > uint64(len(t.text)) {
		return nil
	}
	return t.text[off : uint64(off)+uint64(n)]
}

// name is the whole name of entry i.
func (t *table) name(i int) string {
	var parts [][]byte
	n := 0
	for depth := 0; i >= 0 && i < len(t.entries) && depth <= MaxDepth; depth++ {
		e := &t.entries[i]
		part := t.str(e.name, int(e.nameLen))
		parts = append(parts, part)
		n += len(part) + 1
		if e.parent == none || int(e.parent) >= i {
			break
		}
		i = int(e.parent)
	}
	b := make([]byte, 0, n)
	for k := len(parts) - 1; k >= 0; k-- {
		if len(b) > 0 {
			b = append(b, '/')
		}
		b = append(b, parts[k]...)
	}
	return string(b)
}

// appendEntries appends entries [from, to) to es.
func (t *table) appendEntries(es []Entry, from, to int) []Entry {
	lastParent, lastDir := uint32(none), ""
	for i := from; i < to; i++ {
		r := &t.entries[i]
		if r.parent != lastParent {
			lastParent, lastDir = r.parent, ""
			if r.parent != none && int(r.parent) < i {
				lastDir = t.name(int(r.parent))
			}
		}
		e := Entry{
			Name: join(lastDir, string(t.str(r.name, int(r.nameLen)))), Kind: r.kind, Mode: r.mode, UID: r.uid, GID: r.gid,
			Rdev: r.rdev, Size: r.size, Mtime: Time{Sec: r.sec, Nsec: r.nsec},
		}
		if r.linkLen > 0 {
			e.Linkname = string(t.str(r.link, int(r.linkLen)))
		}
		if r.xattrLen > 0 {
			e.Xattrs = decodeXattrs(t.str(r.xattr, int(r.xattrLen)))
		}
		es = append(es, e)
	}
	return es
}

// find is the number of the chunk that holds byte off of entry i, none when there is none.
func (t *table) find(i int, off int64) uint32 {
	if i < 0 || i >= len(t.entries) || off < 0 {
		return none
	}
	e := &t.entries[i]
	first, n := uint64(e.chunk), uint64(e.chunks)
	if first+n > uint64(len(t.chunks)) {
		return none
	}
	own := t.chunks[first : first+n]
	k := sort.Search(len(own), func(k int) bool { return own[k].offset > off }) - 1
	if k < 0 || off >= own[k].offset+own[k].len() {
		return none
	}
	return uint32(first) + uint32(k)
}

func (t *table) chunk(n uint32) Chunk {
	c := &t.chunks[n]
	return Chunk{Digest: c.digest, Offset: c.offset, Size: c.len(), Index: int(n)}
}

// spanAt is the last span that begins at or before tar offset uoff.
func (t *table) spanAt(uoff int64) uint32 {
	return uint32(max(0, sort.Search(len(t.spans), func(k int) bool { return t.spans[k].uoff > uoff })-1))
}

// Extended attributes are stored as name length (2 bytes), value length (4 bytes), name, value; little endian.

func appendXattrs(b []byte, xs []Xattr) []byte {
	for _, x := range xs {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Name)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(x.Value)))
		b = append(append(b, x.Name...), x.Value...)
	}
	return b
}

func decodeXattrs(b []byte) []Xattr {
	var xs []Xattr
	for len(b) >= 6 {
		n, v := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint32(b[2:]))
		b = b[6:]
		if n > len(b) || v > len(b)-n {
			break
		}
		xs = append(xs, Xattr{Name: string(b[:n]), Value: append([]byte{}, b[n:n+v]...)})
		b = b[n+v:]
	}
	return xs
}
