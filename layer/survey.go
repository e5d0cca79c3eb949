package layer

import (
	"os"
	"path/filepath"
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

// survey finds out how much of a layer that has just been opened is stored already, for Progress and Mode.
func (l *Layer) survey() {
	var all, here int64 // bytes of chunks
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
			return
		}
		if len(batch) == 0 {
			break
		}
		for i := range batch {
			c := &batch[i]
			all += c.len()
			if c.hole() || l.o.Chunks.Has(c.digest) {
				here += c.len()
			}
		}
	}
	// How much of the blob that was is not worth finding out exactly.
	if all > 0 {
		l.have.Add(int64(float64(l.size) * float64(here) / float64(all)))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if here == all && !l.untrusted && l.err == nil && l.mode != Streaming {
		l.have.Store(l.size)
		l.mode, l.reason = Full, l.reason+"; all chunks are stored"
	}
}
