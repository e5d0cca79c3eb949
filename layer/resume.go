package layer

import (
	"context"
	"crypto/sha256"
	"encoding"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"slices"
	"time"
)

const (
	markEvery = time.Second // between two marks of a stream
	snapEvery = 1 << 20     // bytes of the blob between two snapshots of its digest
)

// snapshot is the digest of the blob up to an offset.
type snapshot struct {
	off   int64
	state hashState
}

// snap takes down the digest h of the blob up to off.
func (s *stream) snap(h hash.Hash, off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snaps = append(s.snaps, snapshot{off, stateOf(h)})
}

// snapAt is the last snapshot up to off. Those before it are not needed any more.
func (s *stream) snapAt(off int64) (snapshot, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(s.snaps) && s.snaps[n].off <= off {
		n++
	}
	if n == 0 {
		return snapshot{}, false
	}
	s.snaps = slices.Delete(s.snaps, 0, n-1)
	return s.snaps[0], true
}

// stateOf is what a later sha256 can go on from.
func stateOf(h hash.Hash) (st hashState) {
	b, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err == nil && len(b) == len(st) {
		copy(st[:], b)
	}
	return st // a zero one is refused by hashFrom
}

// hashFrom is a sha256 that goes on from st.
func hashFrom(st hashState) (hash.Hash, error) {
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(st[:]); err != nil {
		return nil, fmt.Errorf("sha256 state: %w", err)
	}
	return h, nil
}

// mark writes down, if it is time, that all in front of tar offset pos is known and stored, so that a stream that is taken
// up begins there. left bytes of the newest entry's file follow; 0: a header does.
func (s *stream) mark(ctx context.Context, src *tarSource, pos, left, holes int64) error {
	if s.journal == nil || s.journal.given || time.Since(s.marked) < s.every {
		return nil
	}
	t := s.l.t // only this goroutine appends to it
	if len(t.spans) == 0 {
		return nil
	}
	// All chunks so far are stored once nothing is left of the buffers that they were in.
	s.tell()
	if err := s.mem.Acquire(ctx, s.room); err != nil {
		return context.Cause(ctx)
	}
	s.mem.Release(s.room)
	k := t.spanAt(pos)
	begin := t.spans[k]
	if t.form == formTar {
		begin.off = pos
	}
	blob, ok := s.snapAt(begin.off)
	if !ok {
		return nil
	}
	m := &mark{Off: blob.off, Blob: blob.state, Pos: pos, Left: left, Holes: holes, Hashed: max(src.next, src.done), Tar: stateOf(src.hash), Form: uint64(t.form)}
	s.mu.Lock()
	fresh := s.fresh
	s.mu.Unlock()
	s.journal.add(m, t, fresh, [6]uint64{
		uint64(len(t.entries)), uint64(len(t.chunks)), uint64(k) + 1, uint64(len(t.text)), uint64(begin.window) + uint64(begin.windowLen), uint64(len(fresh)),
	})
	s.marked = time.Now()
	return nil
}

// takeUp makes the table what an earlier stream of the layer, that was cut short, had found out, and returns where to go on;
// nil when there was none, or nothing of it is left. The Layer is not shared yet.
func (l *Layer) takeUp() *taken {
	if l.o.Dir == "" {
		return nil
	}
	t, fresh, m, end, err := readJournal(filepath.Join(l.o.Dir, partialName(l.id)), l.id, l.size)
	if err != nil {
		return nil
	}
	from := &taken{mark: m, fresh: fresh, end: end}
	if from.blob, err = hashFrom(m.Blob); err != nil {
		return nil
	}
	if from.tar, err = hashFrom(m.Tar); err != nil {
		return nil
	}
	from.saved = [6]uint64{
		uint64(len(t.entries)), uint64(len(t.chunks)), uint64(len(t.spans)), uint64(len(t.text)), uint64(len(t.windows)), uint64(len(fresh)),
	}
	l.t = t
	l.ready = make([]bool, len(t.chunks))
	for i := range l.ready {
		l.ready[i] = true
	}
	l.have.Store(m.Off)
	return from
}

// taken is a stream that is taken up.
type taken struct {
	*mark
	blob, tar hash.Hash // up to Off and Hashed
	fresh     []uint32
	end       int64 // of the journal
	saved     [6]uint64
}

// begin is the span to inflate from.
func (m *taken) begin(t *table) span {
	if t.form == formTar {
		return span{off: m.Off, uoff: m.Off}
	}
	r := &t.spans[len(t.spans)-1]
	return span{off: r.off, uoff: r.uoff, bit: r.bit}
}

// inflateOn is inflater for a stream that is taken up: r begins at from.Off.
func (s *stream) inflateOn(r io.Reader) (inflater, error) {
	l := s.l
	l.mu.RLock()
	t := l.t
	sp := s.from.begin(t)
	f := t.form
	rec := t.spans[len(t.spans)-1]
	z := t.windows[rec.window : uint64(rec.window)+uint64(rec.windowLen)]
	l.mu.RUnlock()
	if _, err := io.CopyN(io.Discard, r, sp.off-s.from.Off); err != nil {
		return nil, err
	}
	switch f {
	case formGzip:
		if len(z) > 0 {
			w, err := l.spans.unpack(z)
			if err != nil {
				return nil, fmt.Errorf("take up at byte %d: %w", sp.off, err)
			}
			sp.window = w
		}
		return continueGzip(r, sp), nil
	case formZstd:
		zr, err := newZstdReader(r, sp, true)
		if err != nil {
			return nil, err
		}
		zr.last = sp.uoff // the table has that span
		return zr, nil
	}
	return &tarReader{r: r, begun: true}, nil
}

// builderOf is the builder that goes on with t.
func builderOf(t *table) *builder {
	b := &builder{t: t}
	var es []Entry
	for from := 0; from < len(t.entries); from += len(es) {
		es = t.appendEntries(es[:0], from, min(from+maxBatch, len(t.entries)))
		for i := range es {
			b.note(&es[i], uint32(from+i))
		}
	}
	return b
}
