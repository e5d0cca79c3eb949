package chunkcache

import (
	"encoding/binary"

	"github.com/dgraph-io/badger/v4"
)

// A segment is sealed when nobody appends to it any more and the index has all of its records. Which ones are, the index
// remembers under "c/s" and the segment's id: after an unclean stop only the others have to be searched for records that
// were appended and not indexed.
const sealPrefix = "c/s"

func sealKey(id uint32) []byte { return binary.BigEndian.AppendUint32([]byte(sealPrefix), id) }

// finished are the segments that are not sealed and that nobody appends to: all of their records have been queued for
// the index.
func (s *segments) finished() (all []*segment) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, g := range s.byID {
		if g != s.active && !g.sealed.Load() && g.writers.Load() == 0 {
			all = append(all, g)
		}
	}
	return all
}

// seal remembers that the index has all records of the segments.
func (c *Cache) seal(all []*segment) error {
	if len(all) == 0 {
		return nil
	}
	b := c.db.NewWriteBatch()
	defer b.Cancel()
	for _, g := range all {
		if err := b.Set(sealKey(g.id), nil); err != nil {
			return err
		}
	}
	if err := b.Flush(); err != nil {
		return err
	}
	for _, g := range all {
		g.sealed.Store(true)
	}
	return nil
}

// unseal forgets a segment that is about to be removed.
func (c *Cache) unseal(id uint32) error {
	return c.update(func(txn *badger.Txn) error { return txn.Delete(sealKey(id)) })
}

// loadSeals reads which segments are sealed.
func (c *Cache) loadSeals() error {
	return c.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(sealPrefix)})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			key := it.Item().Key()
			if len(key) != len(sealPrefix)+4 {
				continue
			}
			if g := c.segs.get(binary.BigEndian.Uint32(key[len(sealPrefix):])); g != nil {
				g.sealed.Store(true)
			}
		}
		return nil
	})
}
