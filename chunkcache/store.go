package chunkcache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Put verifies data and keeps it as chunk k. What the cache has already it does not store again. Where the disk is full
// or cannot be written the chunk is not kept, and that is no error: Has tells, and Options.Warn.
func (c *Cache) Put(ctx context.Context, k Key, data []byte) error {
	_, err := c.Add(ctx, k, data)
	return err
}

// Add is Put, and says whether the cache had no such chunk before: who puts chunks that are not vouched for yet can
// delete those it added when nobody vouches for them in the end.
func (c *Cache) Add(ctx context.Context, k Key, data []byte) (added bool, err error) {
	switch {
	case c.closed.Load():
		return false, ErrClosed
	case ctx.Err() != nil:
		return false, ctx.Err()
	case len(data) == 0 || len(data) > MaxSize:
		return false, fmt.Errorf("put chunk %s: %d bytes, chunks have 1 to %d", short(k), len(data), MaxSize)
	}
	if err := verify(k, int64(len(data)), data); err != nil {
		return false, fmt.Errorf("put: %w", err)
	}
	c.stats.offered.Add(int64(len(data)))
	return c.store(k, data), nil
}

// Has says whether the cache has chunk k. What it has may still turn out to be damaged on disk, and is fetched again
// then.
func (c *Cache) Has(k Key) bool {
	if c.closed.Load() {
		return false
	}
	e, err := c.find(&k)
	return err == nil && e != nil
}

// Delete drops chunk k and frees its disk space. A chunk that is not there is no error.
func (c *Cache) Delete(k Key) error {
	if c.closed.Load() {
		return ErrClosed
	}
	for { // an entry that has left memory meanwhile is found anew
		e, err := c.find(&k)
		if err != nil || e == nil || c.remove(k, e) {
			return err
		}
	}
}

// store keeps data, which the caller has verified, as chunk k, and says whether it was not there and is now.
func (c *Cache) store(k Key, data []byte) (added bool) {
	e, err := c.find(&k)
	if err != nil {
		c.full.set(c, err)
	}
	if err != nil || e != nil {
		return false
	}
	size := int64(len(data))
	if n := recordLength(size); !c.spaceFor(n) || !c.withinLimit(n) {
		return false
	}
	if !c.commits.room() {
		return false // the index cannot be written, which was told
	}
	g, off, err := c.segs.append(k, data)
	if err != nil {
		c.full.set(c, err)
		return false
	}
	defer g.writers.Add(-1)
	c.full.clear()
	e = &entry{seg: g, off: off, size: size}
	e.checked.Store(allBlocks)
	e.used.Store(c.clock.Load())
	e.saved.Store(c.clock.Load())
	other, err := c.insert(k, e, blockSums(data))
	if err != nil {
		c.segs.free(e)
		c.full.set(c, err)
		return false
	}
	if other != nil {
		if other.seg != g || other.off != off { // else a rebuild was quicker to find the record
			c.segs.free(e)
		}
		return false
	}
	c.stats.chunks.Add(1)
	c.stats.bytes.Add(size)
	return true
}

// fullness remembers that the disk is full, or cannot be written, so that not every chunk has to find out.
type fullness struct {
	room  atomic.Int64 // bytes that may be stored before the file system is asked again
	isSet atomic.Bool
	mu    sync.Mutex
	until time.Time // guarded by mu; when to try again
}

const (
	fullRetry = time.Second
	roomStep  = 16 << 20
)

// set notes why chunks cannot be stored now, and tells so once until it is not.
func (f *fullness) set(c *Cache, err error) {
	if c.closed.Load() { // which is why
		return
	}
	f.mu.Lock()
	first := !f.isSet.Swap(true)
	f.until = time.Now().Add(fullRetry)
	f.room.Store(0)
	f.mu.Unlock()
	if first {
		c.warn(fmt.Errorf("cache %s: %w; until that is over, images are read without being cached", c.dir, err))
	}
}

// again lets the next chunk try: room was made.
func (f *fullness) again() {
	if !f.isSet.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until = time.Time{}
	f.room.Store(0)
}

func (f *fullness) clear() {
	if f.isSet.Load() {
		f.isSet.Store(false)
	}
}

// wait says whether it is too early to try again.
func (f *fullness) wait() bool {
	if !f.isSet.Load() {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Before(f.until)
}

// spaceFor says whether n more bytes may be stored.
func (c *Cache) spaceFor(n int64) bool {
	if c.full.wait() {
		return false
	}
	if c.o.MinFree < 0 || c.full.room.Add(-n) >= 0 {
		return true
	}
	free, err := freeBytes(c.dir)
	if err != nil {
		return true // the write will tell
	}
	if free-c.o.MinFree < n {
		c.full.set(c, fmt.Errorf("%d MiB are free, %d MiB are kept free: %w", free>>20, c.o.MinFree>>20, unix.ENOSPC))
		return false
	}
	c.full.room.Store(min(roomStep, free-c.o.MinFree-n))
	return true
}

// databaseRoom answers an error when the file system is so full that writing to badger's memory maps could kill the
// process: a page that has no block behind it is SIGBUS.
func (c *Cache) databaseRoom() error {
	if c.o.MinFree < 0 {
		return nil
	}
	free, err := freeBytes(c.dir)
	if err == nil && free < c.o.MinFree/4 {
		return fmt.Errorf("chunk index of %s: %d MiB are free: %w; make room", c.dir, free>>20, unix.ENOSPC)
	}
	return nil
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func outOfSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
