package chunkcache

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// wanted is a chunk that a reader asks for, and how to get it.
type wanted struct {
	key  Key
	size int64
	fill func(context.Context) ([]byte, error)
}

// flight is a chunk on its way.
type flight struct {
	landed chan struct{} // closed when data or err is there
	data   []byte        // immutable once landed
	err    error         // immutable once landed
	retry  bool          // immutable once landed: err concerns only the filler, another should try

	// guarded by the shard's mu
	class   priority.Class       // the most urgent of its fillers'
	fillers int                  // that have not ended
	stops   []context.CancelFunc // end the fills when the chunk is there
	readers int                  // who may still read data: those who wait, and who has filled it
	granted grant                // of the buffer budget to data, given back by the last reader
}

// miss fills p from a chunk that the cache does not have: from the flight that is bringing it, or a new one. It answers
// again when the caller should look again, since the filler was cancelled or the chunk has arrived meanwhile.
func (c *Cache) miss(ctx context.Context, w wanted, p []byte, off int64) (again bool, err error) {
	s := c.shard(&w.key)
	f, fills := s.board(&w.key, priority.From(ctx))
	if f == nil {
		return true, nil
	}
	if fills {
		data, err := c.fly(ctx, s, f, w)
		if err == nil {
			copy(p, data[off:])
		}
		return false, err
	}
	defer c.leave(s, f)
	select {
	case <-f.landed:
	case <-ctx.Done():
		return false, fmt.Errorf("read chunk %s: %w", short(w.key), ctx.Err())
	}
	c.stats.shared.Add(1)
	if f.err != nil {
		return f.retry, f.err
	}
	if int64(len(f.data)) != w.size {
		return false, verify(w.key, w.size, f.data)
	}
	copy(p, f.data[off:])
	return false, nil
}

// board finds the flight that brings chunk k, or starts one; nil when the chunk has arrived. The caller fills if there
// was none or it was less urgent; else it is one of the readers.
func (s *shard) board(k *Key, class priority.Class) (f *flight, fills bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[*k]; e != nil && !e.dead.Load() {
		return nil, false
	}
	if f = s.flights[*k]; f == nil {
		f = &flight{landed: make(chan struct{})}
		s.flights[*k] = f
	}
	if fills = !f.hasLanded() && (f.fillers == 0 || class < f.class); fills {
		f.fillers++
		f.class = class
	} else {
		f.readers++
	}
	return f, fills
}

// fly brings chunk k: it fills, verifies, tells everybody and stores.
func (c *Cache) fly(ctx context.Context, s *shard, f *flight, w wanted) ([]byte, error) {
	err := fmt.Errorf("fill chunk %s: it panicked", short(w.key))
	defer func() { // also where fill panics, which goes on to the caller
		s.mu.Lock()
		defer s.mu.Unlock()
		if f.fillers--; f.fillers > 0 {
			return // who is more urgent, or less, may still bring it
		}
		if !f.hasLanded() {
			f.err, f.retry = err, handsOver(ctx, err)
			close(f.landed)
		}
		delete(s.flights, w.key)
	}()
	within, stop := context.WithCancel(ctx)
	defer stop()
	s.mu.Lock()
	f.stops = append(f.stops, stop)
	s.mu.Unlock()

	data, e := c.fill(within, s, f, w)
	switch {
	case e == nil:
		err = nil
		return data, nil
	case f.hasLanded() && f.err == nil && int64(len(f.data)) == w.size: // somebody else was quicker, and stopped this fill
		err = nil
		return f.data, nil
	}
	err = fmt.Errorf("fill chunk %s: %w", short(w.key), e)
	return nil, err
}

// hasLanded says whether data or err is there.
func (f *flight) hasLanded() bool {
	select {
	case <-f.landed:
		return true
	default:
		return false
	}
}

// fill calls fill within the buffer budget, and once more if the bytes are not the chunk's. The first of a flight's
// fillers that has them hands them to all.
func (c *Cache) fill(ctx context.Context, s *shard, f *flight, w wanted) ([]byte, error) {
	granted, err := c.buffers.acquire(ctx, priority.From(ctx), w.size)
	if err != nil {
		return nil, err
	}
	defer func() { c.buffers.release(granted) }()
	c.stats.misses.Add(1)
	data, err := w.fill(ctx)
	if err != nil {
		return nil, err
	}
	if err = verify(w.key, w.size, data); err != nil && ctx.Err() == nil {
		c.stats.rejected.Add(1)
		if data, err = w.fill(ctx); err == nil {
			err = verify(w.key, w.size, data)
		}
	}
	if err != nil || !s.land(f, data, &granted) {
		return data, err
	}
	defer c.leave(s, f)
	c.stats.offered.Add(w.size)
	c.store(w.key, data)
	return data, nil
}

// land hands data to all who wait for f, and to f what was granted for it. The caller is one of the readers then. It
// answers false when somebody else was quicker.
func (s *shard) land(f *flight, data []byte, granted *grant) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.hasLanded() {
		return false
	}
	f.data = data
	f.readers++
	f.granted, *granted = *granted, f.granted
	close(f.landed)
	for _, stop := range f.stops {
		stop()
	}
	return true
}

// handsOver says whether err concerns only whose fill it is, because ctx ended or the layer was closed.
func handsOver(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrClosed)
}

// leave ends one reader's interest in f's bytes.
func (c *Cache) leave(s *shard, f *flight) {
	s.mu.Lock()
	f.readers--
	var g grant
	if f.readers == 0 {
		g, f.granted = f.granted, g
	}
	s.mu.Unlock()
	c.buffers.release(g)
}
