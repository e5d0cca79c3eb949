package layer

import (
	"golang.org/x/sys/unix"
)

// validate checks that nothing in t points outside of t or its blob, and that the orders hold which the rest of the
// package relies on. It is done whenever a table comes from outside of the process; a table that passes can be used without any
// further check, whoever made it. What its entries say may still be a lie.
func (t *table) validate() error {
	if t.form < formTar || t.form > formZstdParts || t.blob < 0 || t.end < 0 || t.end > t.blob || t.tar < 0 {
		return corrupt("index: impossible sizes or form")
	}
	if len(t.entries) > MaxEntries || len(t.chunks) > MaxChunks || len(t.text) > MaxText || len(t.windows) > MaxText || t.tar > maxExpanded(t.blob) {
		return refused("index: too large")
	}
	if err := t.validateSpans(); err != nil {
		return err
	}
	if err := t.validateChunks(); err != nil {
		return err
	}
	return t.validateEntries()
}

func (t *table) validateSpans() error {
	if len(t.sums) != 0 && (len(t.sums) != len(t.spans) || t.form == formTar) {
		return corrupt("index: digests of spans do not match them")
	}
	last := spanRec{off: -1}
	for i := range t.spans {
		s := &t.spans[i]
		if s.off < 0 || s.off >= max(t.end, 1) || s.off < last.off || s.uoff < 0 || s.uoff < last.uoff || s.bit > 7 ||
			uint64(s.window)+uint64(s.windowLen) > uint64(len(t.windows)) || t.form.parts() && s.uoff != 0 {
			return corrupt("index: span %d is out of order or bounds", i)
		}
		last = *s
	}
	if t.form == formTar && len(t.spans) > 0 && (len(t.spans) != 1 || t.spans[0] != spanRec{}) {
		return corrupt("index: an uncompressed tar has one span")
	}
	return nil
}

func (t *table) validateChunks() error {
	last := chunkRec{}
	limit := int64(MaxInner)
	if !t.form.parts() {
		limit = maxExpanded(t.blob)
	}
	for i := range t.chunks {
		c := &t.chunks[i]
		n := c.len()
		if int(c.span) >= len(t.spans) || n == 0 || n > MaxChunkSize || c.inner < 0 || c.inner > limit || c.offset < 0 ||
			c.span < last.span || c.span == last.span && c.inner < last.inner {
			return corrupt("index: chunk %d is out of order or bounds", i)
		}
		if t.form == formTar && c.size&chunkFlags == 0 && c.inner+n > t.end {
			return corrupt("index: chunk %d is outside of the blob", i)
		}
		if t.form.parts() && c.sparse() {
			return corrupt("index: chunk %d has no tar header", i)
		}
		if c.digest == (Digest{}) && (len(t.sums) == 0 && t.form != formTar || t.form.parts() || c.size&chunkFlags != 0) {
			return corrupt("index: chunk %d has no digest", i)
		}
		last = *c
	}
	return nil
}

func (t *table) validateEntries() error {
	text, chunks := uint64(len(t.text)), uint64(len(t.chunks))
	for i := range t.entries {
		e := &t.entries[i]
		if e.parent != none && int(e.parent) >= i || e.kind > Opaque || e.size < 0 || e.nsec >= 1e9 ||
			uint64(e.name)+uint64(e.nameLen) > text || uint64(e.link)+uint64(e.linkLen) > text ||
			uint64(e.xattr)+uint64(e.xattrLen) > text || uint64(e.chunk)+uint64(e.chunks) > chunks {
			return corrupt("index: entry %d is out of order or bounds", i)
		}
		size := int64(0)
		for k := range t.chunks[e.chunk : e.chunk+e.chunks] {
			c := &t.chunks[int(e.chunk)+k]
			if c.offset != size {
				return corrupt("index: chunks of entry %d do not follow each other", i)
			}
			size += c.len()
		}
		if file := e.kind == Plain && e.mode&unix.S_IFMT == unix.S_IFREG; file && size != e.size || !file && e.chunks != 0 {
			return corrupt("index: chunks of entry %d are not its size", i)
		}
	}
	return nil
}

// validateNames checks that t's entries are such as the package itself would have made from a tar.
func (t *table) validateNames() error {
	b := builder{t: &table{}}
	var es []Entry
	for from := 0; from < len(t.entries); from += maxBatch {
		es = t.appendEntries(es[:0], from, min(from+maxBatch, len(t.entries)))
		for i := range es {
			e := &es[i]
			name, err := cleanName(e.Name)
			if err != nil {
				return err
			}
			if _, kind, skip, err := whiteout(name); err != nil || skip || kind != Plain || name != e.Name {
				return refused("index: entry %d is called %q", from+i, short(e.Name))
			}
			if err := b.check(e); err != nil {
				return err
			}
			if name == "" && (e.Kind != Plain && e.Kind != Opaque || e.Kind == Plain && e.Mode&unix.S_IFMT != unix.S_IFDIR) {
				return refused("index: the root is not a directory")
			}
		}
	}
	return nil
}
