package chunkcache

import (
	"crypto/sha256"
)

// check makes sure that the blocks of e in need are right, and remembers which are. It answers false when one is wrong
// or cannot be read.
func (c *Cache) check(k Key, e *entry, need uint64) bool {
	e.checking.Lock()
	defer e.checking.Unlock()
	need &^= e.checked.Load()
	if need == 0 {
		return true
	}
	if e.suspect {
		return c.settle(k, e)
	}
	r, err := c.lookup(k)
	if err != nil || int64(r.size) != e.size || int64(r.off) != e.off || r.seg != e.seg.id || len(r.sums) == 0 {
		return false
	}
	buf := c.block(blockLen(e.size))
	defer c.blocks.Put(buf)
	for i, sum := range r.sums {
		if need&(1<<i) == 0 {
			continue
		}
		b, ok := e.block(*buf, i)
		if !ok || checksum(b) != sum {
			return false
		}
		e.checked.Or(1 << i)
	}
	return true
}

// settle compares all of e with its key, and where it was suspect has the index told that it is right. The caller holds
// e.checking.
func (c *Cache) settle(k Key, e *entry) bool {
	sums, ok := c.hash(k, e)
	if !ok {
		return false
	}
	if e.suspect && e.checked.Load() != allBlocks {
		c.renew(k, e, sums)
	}
	e.checked.Store(allBlocks)
	return true
}

// hash compares all of e with its key and returns its blocks' checksums.
func (c *Cache) hash(k Key, e *entry) (sums []uint32, ok bool) {
	buf := c.block(blockLen(e.size))
	defer c.blocks.Put(buf)
	h := sha256.New()
	for i := range blockCount(e.size) {
		b, ok := e.block(*buf, i)
		if !ok {
			return nil, false
		}
		h.Write(b)
		sums = append(sums, checksum(b))
	}
	return sums, Key(h.Sum(nil)) == k
}

// block reads block i of e into buf.
func (e *entry) block(buf []byte, i int) ([]byte, bool) {
	l := blockLen(e.size)
	off := int64(i) * l
	b := buf[:min(l, e.size-off)]
	_, err := e.seg.f.ReadAt(b, e.off+off)
	return b, err == nil
}

// block takes a buffer of at least n bytes from the pool.
func (c *Cache) block(n int64) *[]byte {
	if b, ok := c.blocks.Get().(*[]byte); ok && int64(len(*b)) >= n {
		return b
	}
	b := make([]byte, n)
	return &b
}
