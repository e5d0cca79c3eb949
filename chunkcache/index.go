package chunkcache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

// shardCount spreads keys, which are uniformly random, over as many locks.
const shardCount = 256

// shard is a part of what the cache has in memory.
type shard struct {
	mu      sync.RWMutex
	entries map[Key]*entry  // guarded by mu; a dead one says that the index still has to forget the chunk
	flights map[Key]*flight // guarded by mu; chunks being filled
	changes uint64          // guarded by mu; how often an entry died, or left memory: what the index said before may be old

	hits atomic.Int64

	_ [32]byte // two shards share no cache line
}

func (c *Cache) shard(k *Key) *shard { return &c.shards[k[0]] }

// Keys of the database: chunks are "c/k" and the chunk's key, the cache's own state is "c/m"; sealed segments are in
// seal.go.
const chunkPrefix, metaKey = "c/k", "c/m"

func chunkKey(k Key) []byte { return append([]byte(chunkPrefix), k[:]...) }

// find returns the entry of chunk k, nil when the cache has none.
func (c *Cache) find(k *Key) (*entry, error) {
	s := c.shard(k)
	s.mu.RLock()
	e := s.entries[*k]
	s.mu.RUnlock()
	if e == nil {
		e, _, err := c.load(k)
		return e, err
	}
	if e.dead.Load() {
		return nil, nil
	}
	return e, nil
}

// load brings the entry of chunk k from the index into memory. Where there is none, that is so as long as the shard's
// changes are those it answers: while memory knows nothing of a chunk the index knows all of it, and whatever has
// happened to the chunk since is in memory, or has left it, which is counted.
func (c *Cache) load(k *Key) (e *entry, changes uint64, err error) {
	s := c.shard(k)
	for {
		s.mu.RLock()
		changes = s.changes
		e := s.entries[*k]
		s.mu.RUnlock()
		if e != nil {
			if e.dead.Load() {
				e = nil
			}
			return e, changes, nil
		}
		r, err := c.lookup(*k)
		if err != nil {
			return nil, changes, err
		}
		s.mu.Lock()
		if s.entries[*k] != nil || s.changes != changes {
			s.mu.Unlock()
			continue
		}
		var g *segment
		if r.size > 0 {
			g = c.segs.get(r.seg)
		}
		if g != nil {
			e = &entry{seg: g, off: int64(r.off), size: int64(r.size), suspect: r.epoch != c.epoch || len(r.sums) == 0}
			e.used.Store(r.used)
			e.saved.Store(r.used)
			s.entries[*k] = e
			c.trim(s)
		}
		s.mu.Unlock()
		return e, changes, nil
	}
}

// lookup reads the index's record of chunk k; its size is 0 when there is none or it cannot be used.
func (c *Cache) lookup(k Key) (r record, err error) {
	err = c.view(func(txn *badger.Txn) error {
		item, err := txn.Get(chunkKey(k))
		if err != nil {
			return err
		}
		return item.Value(func(b []byte) error {
			r, err = decodeRecord(b)
			return err
		})
	})
	switch {
	case errors.Is(err, badger.ErrKeyNotFound), errors.Is(err, errRecord):
		return record{}, nil
	case err != nil:
		return record{}, fmt.Errorf("look up chunk %s: %w", short(k), err)
	}
	return r, nil
}

// insert makes e the entry of chunk k and has it indexed. Where the cache has the chunk meanwhile it answers that entry
// instead.
func (c *Cache) insert(k Key, e *entry, sums []uint32) (other *entry, err error) {
	s := c.shard(&k)
	for {
		other, changes, err := c.load(&k)
		if other != nil || err != nil {
			return other, err
		}
		s.mu.Lock()
		if cur := s.entries[k]; cur != nil && cur.dead.Load() || cur == nil && s.changes == changes {
			c.put(s, k, e, sums)
			s.mu.Unlock()
			return nil, nil
		}
		s.mu.Unlock()
	}
}

// adopt is insert for a record found in a file. The place of a chunk that is just being deleted is left alone.
func (c *Cache) adopt(k Key, e *entry) error {
	s := c.shard(&k)
	for {
		other, changes, err := c.load(&k)
		if other != nil || err != nil {
			return err
		}
		if !e.seg.holds(k, e) { // its place was freed since the record was found; if it is from now on, there are changes
			return nil
		}
		s.mu.Lock()
		cur := s.entries[k]
		if cur == nil && s.changes == changes {
			c.put(s, k, e, nil)
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if cur != nil {
			return nil
		}
	}
}

// put is what insert and adopt share. The caller holds s.mu.
func (c *Cache) put(s *shard, k Key, e *entry, sums []uint32) {
	s.entries[k] = e
	c.commits.add(op{kind: opPut, key: k, e: e, record: c.record(e, sums)})
	c.trim(s)
}

// replace makes to the entry of chunk k in place of e, whose place is going away. It answers false when e is not the
// chunk's entry any more.
func (c *Cache) replace(k Key, e, to *entry, sums []uint32) bool {
	s := c.shard(&k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[k] != e || e.dead.Load() {
		return false
	}
	s.changes++ // who is looking e up must look again
	s.entries[k] = to
	c.commits.add(op{kind: opPut, key: k, e: to, record: c.record(to, sums)})
	e.dead.Store(true)
	return true
}

// renew has the index told that e, which was suspect, is right.
func (c *Cache) renew(k Key, e *entry, sums []uint32) {
	s := c.shard(&k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[k] == e && !e.dead.Load() {
		c.commits.add(op{kind: opPut, key: k, e: e, record: c.record(e, sums)})
	}
}

// record is what the index is to know of e.
func (c *Cache) record(e *entry, sums []uint32) record {
	return record{epoch: c.epoch, seg: e.seg.id, off: uint32(e.off), size: uint32(e.size), used: e.used.Load(), sums: sums}
}

// remove takes chunk k out of the cache if e is still its entry. Its place is freed when the index has forgotten it, so
// that the index of a process that is killed never names a freed place; until then the dead entry stays in memory, so
// that no rebuild adopts what is in the place.
func (c *Cache) remove(k Key, e *entry) bool {
	s := c.shard(&k)
	s.mu.Lock()
	if s.entries[k] != e || e.dead.Load() {
		s.mu.Unlock()
		return false
	}
	s.changes++
	e.dead.Store(true)
	c.commits.add(op{kind: opDelete, key: k, e: e})
	s.mu.Unlock()
	c.stats.chunks.Add(-1)
	c.stats.bytes.Add(-e.size)
	return true
}

// bury forgets e, which is dead, once the index has forgotten it too.
func (c *Cache) bury(k Key, e *entry) {
	s := c.shard(&k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[k] == e && e.pending.Load() == 0 {
		delete(s.entries, k)
		s.changes++
	}
}

// trim forgets entries that nobody misses when a shard holds too many; which ones is left to chance, which is nearly as
// good as knowing. The caller holds s.mu.
func (c *Cache) trim(s *shard) {
	limit := 2*c.o.Hot/shardCount + 1
	if len(s.entries) <= limit {
		return
	}
	for k, e := range s.entries {
		if e.pending.Load() > 0 {
			continue
		}
		if used := e.used.Load(); !e.dead.Load() && stale(used, e.saved.Load()) {
			c.commits.add(op{kind: opTouch, key: k, e: e, record: record{used: used}})
			continue
		}
		delete(s.entries, k)
		s.changes++
		e.dead.Store(true) // who reads from it must look again: another entry may be made, and deleted
		if len(s.entries) <= limit/2 {
			return
		}
	}
}

// loadMeta reads the cache's own state: version, epoch, chunks, bytes, active segment. known is false when the index has
// never heard of this cache.
func (c *Cache) loadMeta() (active uint32, known bool, err error) {
	err = c.view(func(txn *badger.Txn) error {
		item, err := txn.Get([]byte(metaKey))
		if err != nil {
			return err
		}
		return item.Value(func(b []byte) error {
			if len(b) != 25 || b[0] != recordVersion {
				return nil // another version: rebuild
			}
			known = true
			c.epoch = binary.LittleEndian.Uint32(b[1:])
			c.stats.chunks.Store(int64(binary.LittleEndian.Uint64(b[5:])))
			c.stats.bytes.Store(int64(binary.LittleEndian.Uint64(b[13:])))
			active = binary.LittleEndian.Uint32(b[21:])
			return nil
		})
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		err = nil
	}
	return active, known, err
}

// saveMeta writes what loadMeta reads.
func (c *Cache) saveMeta() error {
	b := binary.LittleEndian.AppendUint32([]byte{recordVersion}, c.epoch)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.stats.chunks.Load()))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.stats.bytes.Load()))
	b = binary.LittleEndian.AppendUint32(b, c.segs.activeID())
	return c.update(func(txn *badger.Txn) error { return txn.Set([]byte(metaKey), b) })
}
