package chunkcache

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// ReadAt fills p with the bytes [off, off+len(p)) of chunk k, which is size bytes long. On a miss it calls fill, which
// returns the whole chunk, once however many ask; the cache keeps the slice only until it has answered everybody, and
// nobody else may change it meanwhile. Where the filler's context ends, a waiter that still wants the chunk calls its
// own fill; and so does a reader that comes with a more urgent class than the filler has, so that whoever moves the
// bytes hears of it. Bytes that do not hash to k are asked for once more, then they are ErrDigest; nobody ever sees them.
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
			c.full.set(c, err) // what the index does not tell can still be filled
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
		again, err := c.miss(ctx, wanted{k, size, fill}, p, off)
		if again {
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
	if int64(len(p)) < around {
		e.readAround(off)
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

// around is how much is read from the disk where less is asked for, bytes: a disk takes hardly longer for it than for a page, and
// what is read here and there in a chunk is often followed by its neighbourhood.
const around = 64 << 10

// readAround has the kernel read the neighbourhood of byte off into its page cache, where it is not there.
func (e *entry) readAround(off int64) {
	from := off &^ (around - 1)
	_ = unix.Fadvise(int(e.seg.f.Fd()), e.off+from, min(around, e.size-from), unix.FADV_WILLNEED) // it is only faster with it
}

// discard drops a chunk whose bytes on disk are wrong or cannot be read. It answers false when it was gone already.
func (c *Cache) discard(k Key, e *entry) bool {
	if c.closed.Load() || !c.remove(k, e) {
		return false
	}
	c.stats.refetched.Add(1)
	return true
}
