package chunkcache

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// ReadAt fills p with the bytes [off, off+len(p)) of chunk k, which is size bytes long. On a miss it calls fill, which
// returns the whole chunk, once however many ask; the cache keeps the slice only until it has answered everybody, and
// nobody else may change it meanwhile. Where the filler's context ends, a waiter that still wants the chunk calls its
// own fill. Bytes that do not hash to k are asked for once more, then they are ErrDigest; nobody ever sees them.
//
// A hit allocates nothing and takes one read lock. A read beyond the chunk is an error; n is len(p) or there is one.
func (c *Cache) ReadAt(ctx context.Context, k Key, size int64, p []byte, off int64, fill func(context.Context) ([]byte, error)) (int, error) {
	if off < 0 || size <= 0 || size > MaxSize || off > size || int64(len(p)) > size-off {
		return 0, fmt.Errorf("read chunk %s [%d,+%d) of %d bytes: out of range", short(k), off, len(p), size)
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if c.closed.Load() {
			return 0, ErrClosed
		}
		e, err := c.find(&k)
		if err != nil {
			return 0, err
		}
		if e != nil {
			if e.size != size {
				return 0, fmt.Errorf("read chunk %s: it is %d bytes, the layer says %d: %w", short(k), e.size, size, ErrDigest)
			}
			if c.read(k, e, p, off) {
				c.shard(&k).hits.Add(1)
				return len(p), nil
			}
			continue // it has been dropped
		}
		err = c.miss(ctx, k, size, p, off, fill)
		if errors.Is(err, errRetry) {
			continue
		}
		if err != nil {
			return 0, err
		}
		return len(p), nil
	}
}

// read fills p from e's place on disk. Where that is not the chunk any more, or never was, it makes sure that e is not
// found again and answers false.
func (c *Cache) read(k Key, e *entry, p []byte, off int64) bool {
	need := blockMask(e.size, off, int64(len(p)))
	if e.checked.Load()&need != need && !c.check(k, e, need) {
		c.discard(k, e)
		return false
	}
	if _, err := e.seg.f.ReadAt(p, e.off+off); err != nil {
		c.discard(k, e)
		return false
	}
	if e.dead.Load() { // set before the place is freed: what was read before is right
		return false
	}
	if now := c.clock.Load(); e.used.Load() != now {
		e.used.Store(now)
	}
	return true
}

// discard drops a chunk whose bytes on disk are wrong or cannot be read. It answers false when it was gone already.
func (c *Cache) discard(k Key, e *entry) bool {
	if c.closed.Load() || !c.remove(k, e) {
		return false
	}
	c.stats.refetched.Add(1)
	return true
}

// flight is a chunk on its way.
type flight struct {
	landed chan struct{} // closed when data or err is there
	data   []byte        // immutable once landed
	err    error         // immutable once landed
	retry  bool          // immutable once landed: err concerns only the filler, another should try
	refs   int           // guarded by the shard's mu; who may still read data
	weight int64         // of the buffer budget, given back with the last reference; guarded by the shard's mu
}

// errRetry says that the chunk's filler was cancelled, or that it has arrived meanwhile: look again.
var errRetry = errors.New("look again")

// miss fills p from a chunk that the cache does not have: from the flight that is bringing it, or a new one.
func (c *Cache) miss(ctx context.Context, k Key, size int64, p []byte, off int64, fill func(context.Context) ([]byte, error)) error {
	s := c.shard(&k)
	s.mu.Lock()
	if e := s.entries[k]; e != nil && !e.dead.Load() {
		s.mu.Unlock()
		return errRetry
	}
	f := s.flights[k]
	filler := f == nil
	if filler {
		f = &flight{landed: make(chan struct{}), refs: 1}
		s.flights[k] = f
	} else {
		f.refs++
	}
	s.mu.Unlock()
	defer c.leave(s, f)

	if filler {
		c.fly(ctx, s, k, size, f, fill)
	} else {
		select {
		case <-f.landed:
		case <-ctx.Done():
			return fmt.Errorf("read chunk %s: %w", short(k), ctx.Err())
		}
		c.stats.shared.Add(1)
	}
	switch {
	case f.err == nil && int64(len(f.data)) == size:
		copy(p, f.data[off:])
		return nil
	case f.err == nil:
		return verify(k, size, f.data)
	case !filler && f.retry:
		return errRetry
	}
	return f.err
}

// handsOver says whether err concerns only whose fill it is, because ctx ended or the layer was closed.
func handsOver(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrClosed)
}

// fly brings chunk k: it fills, verifies, tells everybody and stores.
func (c *Cache) fly(ctx context.Context, s *shard, k Key, size int64, f *flight, fill func(context.Context) ([]byte, error)) {
	landed := false
	land := func(data []byte, err error) {
		landed = true
		f.data, f.err = data, err
		close(f.landed)
	}
	defer func() {
		if !landed { // fill panicked: whoever waits gets an error, the panic goes on to the caller
			land(nil, fmt.Errorf("fill chunk %s: it panicked", short(k)))
		}
		s.mu.Lock()
		delete(s.flights, k)
		s.mu.Unlock()
	}()

	weight := min(size, c.o.Buffers)
	if err := c.buffers.Acquire(ctx, weight); err != nil {
		f.retry = true // ctx has ended
		land(nil, fmt.Errorf("fill chunk %s: %w", short(k), err))
		return
	}
	s.mu.Lock()
	f.weight = weight
	s.mu.Unlock()

	c.stats.misses.Add(1)
	data, err := fill(ctx)
	if err == nil {
		if err = verify(k, size, data); err != nil && ctx.Err() == nil {
			c.stats.rejected.Add(1)
			if data, err = fill(ctx); err == nil {
				err = verify(k, size, data)
			}
		}
	}
	if err != nil {
		f.retry = handsOver(ctx, err)
		land(nil, fmt.Errorf("fill chunk %s: %w", short(k), err))
		return
	}
	land(data, nil)
	c.stats.offered.Add(int64(len(data)))
	if _, err := c.store(k, data); err != nil {
		c.warn(err) // the reader has its bytes
	}
}

// leave ends one reader's interest in f.
func (c *Cache) leave(s *shard, f *flight) {
	s.mu.Lock()
	f.refs--
	weight := f.weight
	if f.refs > 0 {
		weight = 0
	} else {
		f.weight = 0
	}
	s.mu.Unlock()
	if weight > 0 {
		c.buffers.Release(weight)
	}
}
