package layer

import (
	"context"
	"crypto/sha256"
)

func (s *stream) buffer(n int) []byte {
	if n == ChunkSize {
		return *s.big.Get().(*[]byte)
	}
	return make([]byte, n)
}

func (s *stream) release(b []byte) {
	s.mem.Release(int64(len(b)))
	if len(b) == ChunkSize {
		s.big.Put(&b)
	}
}

// store hashes and stores chunks.
func (s *stream) store(ctx context.Context) error {
	for j := range s.work {
		d := s.digest(j.data)
		s.keep(ctx, j.n, d, j.data)
		l := s.l
		l.mu.Lock()
		l.t.chunks[j.n].digest = d
		l.ready[j.n] = true
		l.stored.wake()
		l.mu.Unlock()
		s.release(j.data) // not before: see mark
	}
	return ctx.Err()
}

// digest is the sha256 of a chunk. That of zeros is known: sparse files and disk images are made of them.
func (s *stream) digest(data []byte) Digest {
	if len(data) == ChunkSize && zero(data) {
		s.zero.Do(func() { s.zeroSum = sha256.Sum256(data) })
		return s.zeroSum
	}
	return sha256.Sum256(data)
}

// adder is a Store that says whether a chunk is new, without a race against others who store it.
type adder interface {
	Add(ctx context.Context, key [32]byte, data []byte) (added bool, err error)
}

// keep puts chunk n into the store. Where that fails, because the disk is full, the chunk can still be read from the
// blob: the stream goes on.
func (s *stream) keep(ctx context.Context, n int, d Digest, data []byte) {
	st := s.l.o.Chunks
	if st == nil || st.Has(d) {
		return
	}
	var added bool
	var err error
	if a, ok := st.(adder); ok {
		added, err = a.Add(ctx, d, data)
	} else {
		err = st.Put(ctx, d, data)
		added = err == nil
	}
	if err == nil && added {
		s.mu.Lock()
		s.fresh = append(s.fresh, uint32(n))
		s.mu.Unlock()
	}
}
