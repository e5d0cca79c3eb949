package chunkcache

import (
	"cmp"
	"context"
	"errors"
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
		used, gaps := g.gaps(all)
		left := g.blocks()
		for _, x := range gaps {
			left -= max(0, (x.at+x.length)&^(pageSize-1)-(x.at+pageSize-1)&^(pageSize-1))
		}
		if used*2 <= max(left, 0) {
			sparse[id] = g // its file goes: see move
		} else if err := g.wipe(gaps); err != nil {
			return err
		}
	}
	stay, err := c.move(ctx, sparse)
	for id := range stay {
		_, gaps := sparse[id].gaps(live[id])
		err = errors.Join(err, sparse[id].wipe(gaps))
	}
	return err
}

// gaps are the places of g between its live records, without those that were never written to because the next chunk had to
// be aligned. used is how many bytes the live records take.
func (g *segment) gaps(live []extent) (used int64, gaps []extent) {
	slices.SortFunc(live, func(a, b extent) int { return cmp.Compare(a.at, b.at) })
	last := int64(0)
	end := extent{at: (g.tail + pageSize - 1) &^ (pageSize - 1)}
	for _, x := range append(live, end) {
		if natural := x.length > 0 && place(last, int(x.length-headerSize)) == x.at; x.at > last && !natural {
			gaps = append(gaps, extent{last, x.at - last})
		}
		last = max(last, x.at+x.length)
		used += x.length
	}
	return used, gaps
}

// wipe frees gaps of g, the headers of dead records included, so that no rebuild finds them. Nobody writes to g.
func (g *segment) wipe(gaps []extent) error {
	for _, x := range gaps {
		if err := g.punch(x.at, x.length); err != nil {
			return err
		}
	}
	return nil
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

// move copies what is live in the segments from to the active one and removes them, but those of which there is no room for a
// copy: they stay. Until the index has followed, both have the chunks.
func (c *Cache) move(ctx context.Context, from map[uint32]*segment) (stay map[uint32]bool, err error) {
	stay = make(map[uint32]bool)
	if len(from) == 0 {
		return stay, nil
	}
	err = c.each(ctx, func(k Key, r record) error {
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
	if err == nil {
		err = c.commits.flush()
	}
	if err != nil {
		for _, g := range from {
			g.holed.Store(true) // for the next time
		}
		return nil, err
	}
	for id, g := range from {
		if stay[id] {
			g.holed.Store(true)
			continue
		}
		if err := c.unseal(id); err != nil { // another file may get the name
			return nil, err
		}
		if err := c.segs.remove(g); err != nil {
			return nil, err
		}
	}
	return stay, nil
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
