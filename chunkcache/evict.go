package chunkcache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ErrInUse is in a warning that the cache is over its limit and everything in it is leased.
var ErrInUse = errors.New("everything in it is in use")

// Evict drops chunks, those first that were used longest ago, until the data files take at most target bytes of disk or
// only leased chunks are left, and says how many bytes of disk that gave back.
func (c *Cache) Evict(ctx context.Context, target int64) (freed int64, err error) {
	c.evicting.Lock()
	defer c.evicting.Unlock()
	before := c.segs.measure()
	if before <= target {
		return 0, nil
	}
	oldest, err := c.oldest(ctx, before-target)
	if err == nil {
		err = c.drop(ctx, oldest)
	}
	if err == nil {
		err = c.tidy(ctx)
	}
	freed = before - c.segs.measure()
	c.full.again()
	if err != nil {
		return freed, fmt.Errorf("evict: %w", err)
	}
	return freed, nil
}

// cutoff says what to drop: everything of a lower age, and so many bytes of that age.
type cutoff struct {
	age   uint64
	bytes int64
}

// ageOf orders chunks: by the minute of last use and, as much may have been used in one, by place, a sixteenth of a file at a
// time, so that what goes lies together.
func ageOf(used uint32, r record) uint64 {
	return uint64(used)<<36 | uint64(r.seg)<<4 | min(uint64(r.off)/(defaultSegment/16), 15)
}

// oldest finds the cutoff that frees need bytes.
func (c *Cache) oldest(ctx context.Context, need int64) (cutoff, error) {
	if err := c.commits.flush(); err != nil {
		return cutoff{}, err
	}
	ages := make(map[uint64]int64) // bytes by age: a year has half a million minutes, and a file is seldom used in many
	err := c.each(ctx, func(k Key, r record) error {
		if !c.leased(&k) {
			ages[ageOf(c.lastUse(&k, r), r)] += recordLength(int64(r.size))
		}
		return nil
	})
	for _, age := range slices.Sorted(maps.Keys(ages)) {
		if ages[age] >= need {
			return cutoff{age, need}, err
		}
		need -= ages[age]
	}
	return cutoff{^uint64(0), 0}, err
}

// lastUse is when chunk k was last used; memory knows better than the index.
func (c *Cache) lastUse(k *Key, r record) uint32 {
	s := c.shard(k)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.entries[*k]; e != nil {
		return e.used.Load()
	}
	return r.used
}

// victim is a chunk to be dropped, with what the index says of it.
type victim struct {
	key    Key
	record record
}

// drop deletes what is older than the cutoff and not leased, shard by shard: a shard has the keys that begin with one byte,
// so that its victims are one part of the index. Their places are given back by tidy.
func (c *Cache) drop(ctx context.Context, old cutoff) error {
	for part := range c.shards {
		s := &c.shards[part]
		s.mu.RLock()
		changes := s.changes
		s.mu.RUnlock()
		var all []victim
		err := c.eachOf(ctx, append([]byte(chunkPrefix), byte(part)), func(k Key, r record) error {
			r.used = c.lastUse(&k, r)
			age := ageOf(r.used, r)
			if age > old.age || age == old.age && old.bytes <= 0 || c.leased(&k) {
				return nil
			}
			if age == old.age {
				old.bytes -= recordLength(int64(r.size))
			}
			all = append(all, victim{k, r})
			return nil
		})
		if err != nil {
			return err
		}
		if !c.commits.room() {
			return c.commits.flush()
		}
		for _, k := range c.removeAll(s, changes, all) {
			if err := c.Delete(k); err != nil {
				return err
			}
			c.stats.evicted.Add(1)
		}
	}
	return nil
}

// removeAll takes chunks of one shard out of the cache, as remove does, and leaves their places to tidy. What the index said of
// them is so as long as the shard's changes are those from before it was asked; the chunks of which that is not certain
// are returned.
func (c *Cache) removeAll(s *shard, changes uint64, all []victim) (uncertain []Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	certain := s.changes == changes
	var chunks, size int64
	for i := range all {
		k, r := all[i].key, all[i].record
		e := s.entries[k]
		switch {
		case e != nil && (e.dead.Load() || e.used.Load() > r.used):
			continue // gone, or used meanwhile
		case e == nil && !certain:
			uncertain = append(uncertain, k)
			continue
		case e == nil:
			g := c.segs.get(r.seg)
			if g == nil {
				continue
			}
			e = &entry{seg: g, off: int64(r.off), size: int64(r.size)}
			s.entries[k] = e
		}
		e.dead.Store(true)
		c.commits.add(op{kind: opDrop, key: k, e: e})
		chunks++
		size += e.size
	}
	s.changes++
	c.stats.chunks.Add(-chunks)
	c.stats.bytes.Add(-size)
	c.stats.evicted.Add(chunks)
	return uncertain
}

// evictor keeps the cache within its limit. It is woken by who stores.
func (c *Cache) evictor() {
	for {
		select {
		case <-c.life.Done():
			return
		case <-c.over:
		}
		if c.segs.used.Load() <= c.o.MaxBytes {
			continue
		}
		_, err := c.Evict(c.life, c.o.MaxBytes-c.o.MaxBytes/10)
		if err != nil && c.life.Err() == nil {
			c.warn(err)
		}
	}
}

// withinLimit says whether n more bytes may be stored; where that is over the limit it wakes the evictor. What is being
// evicted may be in the way for a moment: a tenth more than the limit is let through.
func (c *Cache) withinLimit(n int64) bool {
	limit := c.o.MaxBytes
	if limit <= 0 {
		return true
	}
	used := c.segs.used.Load() + n
	if used <= limit {
		return true
	}
	select {
	case c.over <- struct{}{}:
	default:
	}
	if used <= limit+limit/10 {
		return true
	}
	c.full.set(c, fmt.Errorf("over its limit of %d MiB: %w", limit>>20, ErrInUse))
	return false
}
