package chunkcache

import (
	"cmp"
	"context"
	"os"
	"slices"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// extent is the place of a record in a segment.
type extent struct{ at, length int64 }

// tidy gives back the disk that deleted chunks still take: blocks that several small ones shared, whole segments, and
// segments that are mostly empty, whose chunks move to the active one. What is live the index says, not the files'
// headers: those may be damaged or forged. The caller holds evicting.
func (c *Cache) tidy(ctx context.Context) error {
	if err := c.commits.flush(); err != nil { // places are freed after that, which is what makes holes
		return err
	}
	live := make(map[uint32][]extent)
	for _, g := range c.segs.list() {
		if !g.holed.Load() {
			continue
		}
		if c.segs.retire(g) { // else a gap may be a chunk that is being written
			g.holed.Store(false)
			live[g.id] = nil
		}
	}
	if len(live) == 0 {
		return nil
	}
	if err := c.commits.flush(); err != nil {
		return err
	}
	err := c.each(ctx, func(_ Key, r record) error {
		if all, ok := live[r.seg]; ok {
			live[r.seg] = append(all, extent{int64(r.off) - headerSize, recordLength(int64(r.size))})
		}
		return nil
	})
	if err != nil {
		return err
	}
	sparse := make(map[uint32]*segment)
	for id, all := range live {
		g := c.segs.get(id)
		used, err := g.punchGaps(all)
		if err != nil {
			return err
		}
		if used*2 <= g.blocks() {
			sparse[id] = g
		}
	}
	return c.move(ctx, sparse)
}

// punchGaps wipes g between its live records, headers of dead ones included, so that no rebuild finds them; that frees the
// pages there. It says how many bytes the live records take. Nobody writes to g.
func (g *segment) punchGaps(live []extent) (used int64, err error) {
	slices.SortFunc(live, func(a, b extent) int { return cmp.Compare(a.at, b.at) })
	last := int64(0)
	end := extent{at: (g.tail + pageSize - 1) &^ (pageSize - 1)}
	for _, x := range append(live, end) {
		if natural := x.length > 0 && place(last, int(x.length-headerSize)) == x.at; x.at > last && !natural {
			if err := g.punch(last, x.at-last); err != nil {
				return 0, err
			}
		}
		last = max(last, x.at+x.length)
		used += x.length
	}
	return used, nil
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

// move copies what is live in the segments from to the active one and removes them. Until the index has followed, both
// have the chunks.
func (c *Cache) move(ctx context.Context, from map[uint32]*segment) error {
	if len(from) == 0 {
		return nil
	}
	stay := make(map[uint32]bool)
	err := c.each(ctx, func(k Key, r record) error {
		g := from[r.seg]
		if g == nil || stay[r.seg] {
			return nil
		}
		for {
			e, err := c.find(&k)
			if err != nil || e == nil || e.seg != g {
				return err // moved, deleted, or stored elsewhere meanwhile
			}
			if room, err := c.moveChunk(ctx, k, e); err != nil || !room {
				stay[r.seg] = true
				return err
			}
		}
	})
	if err != nil {
		return err
	}
	if err := c.commits.flush(); err != nil {
		return err
	}
	for id, g := range from {
		if stay[id] {
			g.holed.Store(true)
			continue
		}
		if err := c.unseal(id); err != nil { // another file may get the name
			return err
		}
		if err := c.segs.remove(g); err != nil {
			return err
		}
	}
	return nil
}

// moveChunk copies one chunk, or drops it where it is wrong. It answers false when there is no room for the copy.
func (c *Cache) moveChunk(ctx context.Context, k Key, e *entry) (room bool, err error) {
	granted, err := c.buffers.acquire(ctx, priority.Background, e.size)
	if err != nil {
		return false, err
	}
	defer c.buffers.release(granted)
	data := make([]byte, e.size)
	if _, err := e.seg.f.ReadAt(data, e.off); err != nil || sum256(data) != k {
		c.discard(k, e)
		return true, nil
	}
	if !c.commits.room() {
		return false, nil
	}
	g, off, err := c.segs.append(k, data)
	if err != nil {
		if outOfSpace(err) {
			return false, nil
		}
		return false, err
	}
	defer g.writers.Add(-1)
	to := &entry{seg: g, off: off, size: e.size}
	to.checked.Store(allBlocks)
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
