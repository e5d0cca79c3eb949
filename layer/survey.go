package layer

import (
	"os"
	"path/filepath"
	"strings"
)

// Lazy says whether Open would find d's entries without streaming it: by an index in dir, or because its manifest vouches for
// a TOC. It does not touch the blob, so that a TOC which turns out to be useless is not noticed.
func Lazy(dir string, d Descriptor) bool {
	id, err := parseDigest(d.Digest)
	if err != nil {
		return false
	}
	toc, _ := tocOf(&d)
	if toc != nil {
		return true
	}
	if dir == "" {
		return false
	}
	for _, name := range []string{indexName(id, Digest{}), pulledName(id)} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			continue
		}
		if _, _, file, err := mapIndex(filepath.Join(dir, name)); err == nil {
			file.close()
			return true
		}
	}
	return false
}

// A file beside the index remembers that all chunks of a layer have been stored, so that it need not be found out before
// Mode and Progress can say so. It is only a hint: survey corrects it.

func (l *Layer) hint() string { return filepath.Join(l.o.Dir, fullName(l.id)) }

// fullName is the name of a layer's hint in Options.Dir.
func fullName(id Digest) string { return indexName(id, Digest{})[:2*len(id)] + ".full" }

// remember leaves the hint.
func (l *Layer) remember() {
	if l.o.Dir != "" && l.o.Chunks != nil {
		_ = os.WriteFile(l.hint(), nil, 0o600)
	}
}

// recall takes the hint. The Layer is not shared yet.
func (l *Layer) recall() {
	if l.o.Dir == "" || l.untrusted {
		return
	}
	if _, err := os.Stat(l.hint()); err == nil {
		l.lazily, l.mode, l.reason = l.mode, Full, l.reason+allStored
		l.have.Store(l.size)
	}
}

const allStored = "; all chunks are stored"

// survey finds out how much of a layer that has just been opened is stored already, for Progress and Mode.
func (l *Layer) survey() {
	all, here, ok := l.count()
	if !ok {
		return
	}
	full := here == all
	l.mu.Lock()
	hinted := l.lazily != ""
	if l.err == nil && !l.untrusted {
		switch {
		case full && l.mode != Full:
			l.mode, l.reason = Full, l.reason+allStored
		case !full && hinted && l.mode == Full:
			l.mode, l.reason = l.lazily, strings.TrimSuffix(l.reason, allStored)
		}
	}
	l.lazily = ""
	l.mu.Unlock()
	// How much of the blob that is is not worth finding out exactly.
	part := l.size
	if all > 0 {
		part = int64(float64(l.size) * float64(here) / float64(all))
	}
	switch {
	case full && !hinted:
		l.have.Store(l.size)
		l.remember()
	case !full && hinted:
		l.have.Store(part)
		os.Remove(l.hint())
	case !full:
		l.have.Add(part)
	}
}

// count returns how many bytes the layer's chunks have, and how many of them are stored. ok is false when the layer was
// closed meanwhile.
func (l *Layer) count() (all, here int64, ok bool) {
	var batch []chunkRec
	for from := 0; ; from += len(batch) {
		batch = batch[:0]
		l.mu.RLock()
		closed := l.closed
		if n := len(l.t.chunks); from < n {
			batch = append(batch, l.t.chunks[from:min(from+maxBatch, n)]...)
		}
		l.mu.RUnlock()
		if closed {
			return 0, 0, false
		}
		if len(batch) == 0 {
			return all, here, true
		}
		for i := range batch {
			c := &batch[i]
			all += c.len()
			if c.hole() || l.o.Chunks.Has(c.digest) {
				here += c.len()
			}
		}
	}
}
