package chunkcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/dgraph-io/badger/v4"
)

// Rebuild makes the index anew from the data files, for a database that was lost or is not trusted. Chunks are found by
// their headers and checked against their sha256 when they are first used. The cache can be used meanwhile.
func (c *Cache) Rebuild(ctx context.Context) error {
	c.evicting.Lock()
	defer c.evicting.Unlock()
	if err := c.indexAll(ctx, c.segs.list()); err != nil {
		return fmt.Errorf("rebuild chunk index: %w", err)
	}
	return c.count(ctx)
}

// recover indexes what is in segments that are not sealed: what a process that was killed had appended but not indexed,
// or, where the database was lost, everything. It holds them unsealed until it is done, and the cache marked as open.
func (c *Cache) recover(held []*segment) error {
	if err := c.indexAll(c.life, held); err != nil {
		return err
	}
	for _, g := range held {
		g.writers.Add(-1)
	}
	c.recovered.Store(true)
	return nil
}

// hold keeps the segments that are not sealed so.
func (s *segments) hold() []*segment {
	all := s.finished()
	for _, g := range all {
		g.writers.Add(1)
	}
	return all
}

// indexAll adds all chunks of the segments to the index that it does not have.
func (c *Cache) indexAll(ctx context.Context, all []*segment) error {
	for _, g := range all {
		if err := c.index(ctx, g); err != nil {
			return err
		}
	}
	return c.commits.flush()
}

// index adds all chunks of g to the index that it does not have.
func (c *Cache) index(ctx context.Context, g *segment) error {
	return g.scan(ctx, func(h header, off int64) error {
		if !c.commits.room() {
			if err := c.commits.flush(); err != nil {
				return err
			}
		}
		e := &entry{seg: g, off: off, size: int64(h.size), suspect: true}
		e.used.Store(c.clock.Load())
		e.saved.Store(c.clock.Load())
		return c.adopt(h.key, e)
	})
}

// holds says whether a record of chunk k is in e's place still.
func (g *segment) holds(k Key, e *entry) bool {
	var b [headerSize]byte
	if _, err := g.f.ReadAt(b[:], e.off-headerSize); err != nil {
		return false
	}
	h, ok := decodeHeader(b[:])
	return ok && h.key == k && int64(h.size) == e.size
}

// count finds out how many chunks there are, and their bytes; what comes and goes just when it begins may be missed.
func (c *Cache) count(ctx context.Context) error {
	if err := c.commits.flush(); err != nil {
		return err
	}
	var chunks, size int64
	chunks0, size0 := c.stats.chunks.Load(), c.stats.bytes.Load()
	err := c.each(ctx, func(_ Key, r record) error {
		chunks++
		size += int64(r.size)
		return nil
	})
	if err == nil {
		c.stats.chunks.Add(chunks - chunks0)
		c.stats.bytes.Add(size - size0)
	}
	return err
}

// each calls fn for every chunk of the index, with a record that has no sums. It reads the index in parts, since badger
// keeps the tables that a transaction may still read in memory beside those that have replaced them.
func (c *Cache) each(ctx context.Context, fn func(Key, record) error) error {
	for part := range 256 {
		if err := c.eachOf(ctx, append([]byte(chunkPrefix), byte(part)), fn); err != nil {
			return err
		}
	}
	return nil
}

// eachOf is each for the keys that begin with prefix.
func (c *Cache) eachOf(ctx context.Context, prefix []byte, fn func(Key, record) error) error {
	return c.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix, PrefetchValues: false})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			item := it.Item()
			var k Key
			if len(item.Key()) != len(chunkPrefix)+len(k) {
				continue
			}
			copy(k[:], item.Key()[len(chunkPrefix):])
			var r record
			err := item.Value(func(b []byte) (err error) { r, err = decodePlace(b); return err })
			if errors.Is(err, errRecord) {
				continue
			}
			if err != nil {
				return err
			}
			if err := fn(k, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// scan calls fn for every record of g, with where its chunk begins. It steps from record to record, and where none is
// (a write was cut short, or the space was freed) looks for the next magic.
func (g *segment) scan(ctx context.Context, fn func(h header, off int64) error) error {
	fi, err := g.f.Stat()
	if err != nil {
		return err
	}
	end := fi.Size()
	buf := make([]byte, 64<<10)
	for at := int64(0); at+headerSize < end; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b := buf[:headerSize]
		if _, err := g.f.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if h, ok := decodeHeader(b); ok && at+headerSize+int64(h.size) <= end {
			if err := fn(h, at+headerSize); err != nil {
				return err
			}
			at += recordLength(int64(h.size))
			continue
		}
		if at, err = g.nextMagic(buf, at+recordAlign); err != nil {
			return err
		}
	}
	return nil
}

// nextMagic is where the next thing that looks like a record begins, at or after at; the file's end when there is none.
func (g *segment) nextMagic(buf []byte, at int64) (int64, error) {
	for {
		data, err := g.nextData(at)
		if err != nil {
			return 0, err
		}
		at = max(at, data&^(recordAlign-1))
		n, err := g.f.ReadAt(buf, at)
		for from := 0; ; {
			i := bytes.Index(buf[from:n], []byte(recordMagic))
			if i < 0 {
				break
			}
			if from += i; from%recordAlign == 0 {
				return at + int64(from), nil
			}
			from++
		}
		if errors.Is(err, io.EOF) {
			return at + int64(n), nil
		}
		if err != nil {
			return 0, err
		}
		at += int64(len(buf) - recordAlign)
	}
}
