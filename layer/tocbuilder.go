package layer

import (
	"crypto/sha256"
	"fmt"
)

// tocBuilder fills a table with what a TOC says. The chunks of a file come right after it; add checks that they cover it
// without a gap, and that all of them lie in the blob in the order of the TOC.
type tocBuilder struct {
	builder
	open   bool  // the last entry is a file, more of its chunks may follow
	skip   bool  // the last file is nobody's business, nor are its chunks
	size   int64 // of the open file
	next   int64 // the open file is covered so far
	total  int64
	zeroes map[int64]Digest

	headers int // of entries behind the last chunk
}

// add takes the next entry of the TOC.
func (b *tocBuilder) add(e *tocEntry) error {
	if e.Type == "chunk" {
		if b.skip {
			return nil
		}
		if !b.open {
			return fmt.Errorf("it has a chunk of no file")
		}
		return b.chunk(e)
	}
	if err := b.finish(); err != nil {
		return err
	}
	b.headers++
	entry, err := e.entry()
	if err != nil {
		return err
	}
	n, ok, err := b.builder.add(entry)
	if err != nil {
		return err
	}
	r := entryRec{}
	if ok {
		r = b.t.entries[n]
	}
	b.skip = !ok || r.kind != Plain
	if b.skip || !regular(r.mode) || r.size == 0 {
		return nil
	}
	if b.total += r.size; r.size > maxExpanded(b.t.blob) || b.total > maxExpanded(b.t.blob) {
		return refused("its files have more than %d bytes", maxExpanded(b.t.blob))
	}
	b.open, b.size, b.next = true, r.size, 0
	return b.chunk(e)
}

// finish ends the open file.
func (b *tocBuilder) finish() error {
	if b.open && b.next != b.size {
		return fmt.Errorf("chunks of %q cover %d of its %d bytes", short(b.t.name(len(b.t.entries)-1)), b.next, b.size)
	}
	b.open = false
	return nil
}

// chunk takes the next chunk of the open file, which e says.
func (b *tocBuilder) chunk(e *tocEntry) error {
	n := e.ChunkSize
	if n == 0 {
		n = b.size - b.next
	}
	if e.ChunkOffset != b.next || n <= 0 || n > b.size-b.next {
		return fmt.Errorf("chunks of %q do not follow each other", short(e.Name))
	}
	if e.ChunkType == "zeros" {
		return b.hole(n)
	}
	sum := e.ChunkDigest
	if sum == "" && e.Type == "reg" && n == b.size {
		sum = e.Digest
	}
	digest, err := parseDigest(sum)
	if err != nil || digest == (Digest{}) {
		return fmt.Errorf("a chunk of %q has no digest", short(e.Name))
	}
	t := b.t
	if n > MaxChunkSize || e.InnerOffset < 0 || e.InnerOffset > MaxInner || e.Offset < 0 || e.Offset >= t.end {
		return fmt.Errorf("a chunk of %q lies where none can be", short(e.Name))
	}
	if last := len(t.spans) - 1; last < 0 || e.Offset > t.spans[last].off {
		t.spans = append(t.spans, spanRec{off: e.Offset})
	} else if e.Offset < t.spans[last].off || e.InnerOffset < b.inner() {
		return fmt.Errorf("chunks are not in the order of the blob")
	}
	return b.appendChunk(chunkRec{digest: digest, offset: b.next, inner: e.InnerOffset, size: uint32(n)})
}

// inner is where the newest chunk ends in its span.
func (b *tocBuilder) inner() int64 {
	last := len(b.t.chunks) - 1
	if last < 0 || int(b.t.chunks[last].span) != len(b.t.spans)-1 {
		return 0
	}
	c := &b.t.chunks[last]
	if c.hole() {
		return c.inner
	}
	return c.inner + c.len()
}

// hole takes n bytes of zeros, which need no digest to be believed.
func (b *tocBuilder) hole(n int64) error {
	if len(b.t.spans) == 0 {
		b.t.spans = append(b.t.spans, spanRec{})
	}
	for n > 0 {
		k := min(n, ChunkSize)
		c := chunkRec{digest: b.zeros(k), offset: b.next, inner: b.inner(), size: uint32(k) | chunkHole}
		if err := b.appendChunk(c); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

func (b *tocBuilder) appendChunk(c chunkRec) error {
	t := b.t
	if len(t.chunks) >= MaxChunks {
		return refused("more than %d chunks", MaxChunks)
	}
	c.span = uint32(len(t.spans) - 1)
	t.chunks = append(t.chunks, c)
	b.headers = 0
	t.entries[len(t.entries)-1].chunks++
	b.next += c.len()
	return nil
}

// zeros is the digest of n zeros.
func (b *tocBuilder) zeros(n int64) Digest {
	if d, ok := b.zeroes[n]; ok && n == ChunkSize {
		return d
	}
	d := Digest(sha256.Sum256(make([]byte, n)))
	if n == ChunkSize {
		b.zeroes = map[int64]Digest{n: d}
	}
	return d
}
