package chunkcache

import "time"

// Times of last use are exact to the minute in memory; the index is told when they have moved on by staleAfter minutes,
// so that a busy cache does not write all the time.
const (
	staleAfter    = 10
	saveUsesEvery = 5 * time.Minute
)

// stale says whether the index should be told of a new time of last use.
func stale(used, saved uint32) bool { return used-saved >= staleAfter && used > saved }

// saveUses has the index told of all times of last use that have moved on.
func (c *Cache) saveUses() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for k, e := range s.entries {
			if used := e.used.Load(); stale(used, e.saved.Load()) && e.pending.Load() == 0 && !e.dead.Load() {
				c.commits.add(op{kind: opTouch, key: k, e: e, record: record{used: used}})
			}
		}
		s.mu.Unlock()
	}
}
