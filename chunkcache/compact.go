package chunkcache

import (
	"context"
	"os"
)

// tidy gives back the disk that deleted chunks still take: blocks that several small ones shared, whole segments, and
// segments that are mostly empty, whose chunks move to the active one. The caller holds evicting.
func (c *Cache) tidy(ctx context.Context) error {
	if err := c.commits.flush(); err != nil {
		return err
	}
	for _, g := range c.segs.list() {
		if !g.holed.Swap(false) {
			continue
		}
		if !c.segs.retire(g) { // a gap may be a chunk that is being written
			g.holed.Store(true)
			continue
		}
		live, err := g.punchGaps(ctx)
		if err != nil {
			return err
		}
		if live*2 > g.blocks() {
			continue
		}
		if err := c.move(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// punchGaps frees the whole pages between g's records, and says how many bytes the records take. Nobody writes to g.
func (g *segment) punchGaps(ctx context.Context) (live int64, err error) {
	last := int64(0)
	punch := func(upto int64) error {
		from, to := (last+pageSize-1)&^(pageSize-1), upto&^(pageSize-1)
		if to <= from {
			return nil
		}
		return g.punch(from, to-from)
	}
	err = g.scan(ctx, func(h header, off int64) error {
		if err := punch(off - headerSize); err != nil {
			return err
		}
		n := recordLength(int64(h.size))
		last = off - headerSize + n
		live += n
		return nil
	})
	if err == nil {
		err = punch(g.tail + pageSize) // the last page of the file is not whole
	}
	return live, err
}

// retire takes g out of use for new records. It answers false while somebody is still writing to it.
func (s *segments) retire(g *segment) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active == g {
		s.active = nil
	}
	return g.writers.Load() == 0
}

// move copies what is live in g to the active segment and removes g. Until the index has followed, both have the chunk.
func (c *Cache) move(ctx context.Context, g *segment) error {
	complete := true
	err := g.scan(ctx, func(h header, off int64) error {
		for {
			e, err := c.find(&h.key)
			if err != nil || e == nil || e.seg != g || e.off != off {
				return err // moved, deleted, or stored elsewhere as well
			}
			if room, err := c.moveChunk(ctx, h.key, e); err != nil || !room {
				complete = false
				return err
			}
		}
	})
	if err != nil || !complete {
		g.holed.Store(true)
		return err
	}
	if err := c.commits.flush(); err != nil {
		return err
	}
	return c.segs.remove(g)
}

// moveChunk copies one chunk, or drops it where it is wrong. It answers false when there is no room for the copy.
func (c *Cache) moveChunk(ctx context.Context, k Key, e *entry) (room bool, err error) {
	weight := min(e.size, c.o.Buffers)
	if err := c.buffers.Acquire(ctx, weight); err != nil {
		return false, err
	}
	defer c.buffers.Release(weight)
	data := make([]byte, e.size)
	if _, err := e.seg.f.ReadAt(data, e.off); err != nil || sum256(data) != k {
		c.discard(k, e)
		return true, nil
	}
	c.commits.room()
	g, off, err := c.segs.append(k, data)
	if err != nil {
		if outOfSpace(err) {
			return false, nil
		}
		return false, err
	}
	defer g.writers.Add(-1)
	to := &entry{seg: g, off: off, size: e.size}
	to.checked.Store(^uint64(0))
	to.used.Store(e.used.Load())
	to.saved.Store(e.used.Load())
	if !c.replace(k, e, to, blockSums(data)) {
		c.segs.free(to)
	}
	return true, nil
}

// remove deletes g's file. Readers that are still in it end with an error and look again.
func (s *segments) remove(g *segment) error {
	s.mu.Lock()
	delete(s.byID, g.id)
	s.mu.Unlock()
	err := os.Remove(g.f.Name())
	g.f.Close()
	return err
}
