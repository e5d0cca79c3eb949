package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"reflect"

	"github.com/klauspost/compress/zstd"
)

// MaxIndex is the longest index file that Import takes, bytes.
const MaxIndex = 1 << 30

// Digests yields the digest of every chunk of the layer that is known by now, in the order of its blob, repeated where it
// is.
func (l *Layer) Digests() iter.Seq[Digest] {
	return func(yield func(Digest) bool) {
		var batch []Digest
		for from := 0; ; from += len(batch) {
			batch = batch[:0]
			l.mu.RLock()
			if l.err == nil {
				for n := from; n < min(from+maxBatch, len(l.t.chunks)); n++ {
					batch = append(batch, l.t.chunks[n].digest) // zero while it is not known
				}
			}
			l.mu.RUnlock()
			for _, d := range batch {
				if d != (Digest{}) && !yield(d) {
					return
				}
			}
			if len(batch) == 0 {
				return
			}
		}
	}
}

// Export returns the index of the layer called digest, as it was made from the whole layer and kept in dir, packed for
// others to Import. The error is fs.ErrNotExist where there is none: the layer has not been streamed yet, or needs no
// index because a TOC is in its blob.
func Export(dir, digest string) ([]byte, error) {
	id, err := parseDigest(digest)
	if err != nil {
		return nil, fmt.Errorf("export index of layer %q: %w", short(digest), err)
	}
	path := filepath.Join(dir, indexName(id, Digest{}))
	_, h, file, err := mapIndex(path)
	if err != nil {
		return nil, fmt.Errorf("export index of layer %s: %w", digest, err)
	}
	defer file.close()
	if h.Layer != id {
		return nil, fmt.Errorf("export index of layer %s: %s: %w", digest, path, fs.ErrNotExist)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	return enc.EncodeAll(file.mem, nil), nil
}

// Import keeps an index that Export has packed, somewhere else, for the layer called digest, whose blob has size bytes and
// whose diffID is diffID, or "" when that is not known. Nothing in it is trusted: it must be a sound index of just that
// layer, or Import refuses it; one that has been found to be false is an ErrFalseIndex. What it says about the layer may still be a lie, see Layer.Trusted.
func Import(dir, digest string, size int64, diffID string, r io.Reader) error {
	id, err := parseDigest(digest)
	if err != nil {
		return fmt.Errorf("import index of layer %q: %w", short(digest), err)
	}
	if err := importIndex(dir, id, size, diffID, r); err != nil {
		return fmt.Errorf("import index of layer %s: %w", digest, err)
	}
	return nil
}

func importIndex(dir string, id Digest, size int64, diffID string, r io.Reader) error {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(MaxWindow))
	if err != nil {
		return err
	}
	defer z.Close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "import.*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	n, err := io.Copy(f, io.LimitReader(z, MaxIndex+1))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if n > MaxIndex {
		return refused("index: longer than %d bytes", MaxIndex)
	}
	t, h, file, err := mapIndex(f.Name())
	if err != nil {
		return err
	}
	defer file.close()
	want, err := parseDigest(diffID)
	switch {
	case h.Layer != id || h.Blob != size || h.TOC != (Digest{}):
		return corrupt("index: of another layer")
	case err == nil && h.DiffID != want:
		return corrupt("index: of a layer with the diffID %s", h.DiffID)
	case t.form.parts():
		return corrupt("index: made from a TOC")
	case disproved(dir, id, file.mem):
		return corrupt("%w", ErrFalseIndex)
	}
	if err := t.validateNames(); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, pulledName(id)))
}

// pulledName is the name of a layer's imported index file in Options.Dir.
func pulledName(id Digest) string {
	return indexName(id, Digest{})[:2*len(id)] + ".pulled.idx"
}

// Trusted says whether everything the layer answers comes from its verified blob, or from a TOC that its manifest vouches for. It
// is false for a layer that is read by an imported index until Complete has read the blob once, in order, and found that index
// to be right.
//
// Until then each chunk has the digest that the index names for it, so a chunk in the cache is what its name says; but names, owners,
// modes and which chunk belongs where are the word of whoever made the index. If it was a lie, Complete finds that out: the
// layer then answers ErrCorrupt, as a streamed layer does whose digest turns out to be wrong, and is streamed the next
// time it is opened. A layer that is never completed is never found out.
func (l *Layer) Trusted() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return !l.untrusted && (l.sealed || l.err != nil)
}

// verify reads the layer from end to end and holds the imported index against it. Done is closed when that is decided; when
// the blob could not be read it is not, and verify may be tried again.
func (l *Layer) verify(ctx context.Context) error {
	l.mu.Lock()
	if l.err != nil || !l.untrusted {
		defer l.mu.Unlock()
		return l.err
	}
	v := l.verifying
	if v == nil {
		v = &verification{done: make(chan struct{})}
		l.verifying = v
		vctx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
		l.stop = stop
		l.owned.Go(func() {
			lowly(ctx)
			defer close(v.done)
			defer stop(nil)
			v.err = l.verifyIndex(vctx)
		})
	}
	l.mu.Unlock()
	select {
	case <-v.done:
		return v.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// verification is one attempt of verify.
type verification struct {
	done chan struct{}
	err  error // read-only once done is closed
}

func (l *Layer) verifyIndex(ctx context.Context) error {
	l.have.Store(0)
	fresh := &Layer{
		d: l.d, blob: l.blob, o: l.o, id: l.id, size: l.size, done: make(chan struct{}), have: l.have, stop: func(error) {},
		t: &table{blob: l.size, end: l.size}, hasty: true,
	}
	fresh.runStream(ctx, fresh.takeUp())
	err := fresh.Err()
	defer fresh.spans.close()
	var lie Digest
	defer func() {
		if lie != (Digest{}) {
			disprove(l.o.Dir, l.id, lie)
		}
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.verifying = nil
	switch {
	case l.err != nil: // closed
		if fresh.file != nil {
			fresh.file.close()
		}
		return l.err
	case err != nil && !errors.Is(err, ErrCorrupt):
		return err
	case err == nil && !l.t.same(fresh.t, l.known):
		err = fmt.Errorf("layer %s: %w", l.d.Digest, corrupt("%w", ErrFalseIndex))
		lie = sha256.Sum256(l.file.mem)
	}
	l.forget()
	l.known = nil
	old := l.file
	l.t, l.file = fresh.t, fresh.file
	if old != nil {
		old.close()
	}
	l.untrusted = false
	if err != nil {
		l.fail(err)
	}
	close(l.done)
	return err
}

// same says whether t and u tell of the same files in the same chunks. Digests that t does not have are in known, if they
// have been found out.
func (t *table) same(u *table, known map[int]Digest) bool {
	if len(t.entries) != len(u.entries) || len(t.chunks) != len(u.chunks) {
		return false
	}
	for from := 0; from < len(t.entries); from += maxBatch {
		to := min(from+maxBatch, len(t.entries))
		if !reflect.DeepEqual(t.appendEntries(nil, from, to), u.appendEntries(nil, from, to)) {
			return false
		}
	}
	for i := range t.entries {
		if t.entries[i].chunk != u.entries[i].chunk && t.entries[i].chunks != 0 || t.entries[i].chunks != u.entries[i].chunks {
			return false
		}
	}
	for i := range t.chunks {
		a, b := &t.chunks[i], &u.chunks[i]
		digest := a.digest
		if digest == (Digest{}) {
			digest = known[i]
		}
		if digest != (Digest{}) && digest != b.digest || a.offset != b.offset || a.len() != b.len() {
			return false
		}
	}
	return true
}
