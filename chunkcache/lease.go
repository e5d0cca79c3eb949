package chunkcache

import (
	"encoding/binary"
	"slices"
	"sync"
)

// Lease keeps chunks from being evicted while an image is open. It is safe for concurrent use.
//
// A lease costs 8 bytes a chunk: it knows a part of each key, and now and then keeps a chunk more than was asked for.
type Lease struct {
	c    *Cache
	mu   sync.Mutex
	keys []uint64 // guarded by mu; sorted and unique up to sorted
	done int      // guarded by mu; how many of keys are sorted
}

// leases are those that were not released yet.
type leases struct {
	mu  sync.Mutex
	all map[*Lease]struct{} // guarded by mu
}

// Lease returns a lease of no chunks. Who takes it releases it.
func (c *Cache) Lease() *Lease {
	l := &Lease{c: c}
	c.leases.mu.Lock()
	defer c.leases.mu.Unlock()
	if c.leases.all == nil {
		c.leases.all = make(map[*Lease]struct{})
	}
	c.leases.all[l] = struct{}{}
	return l
}

// Add leases chunks, which the cache need not have yet.
func (l *Lease) Add(keys ...Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range keys {
		l.keys = append(l.keys, leaseKey(&keys[i]))
	}
	if len(l.keys) > 2*l.done+1024 { // so that a chunk that is added again and again takes no more memory
		l.sort()
	}
}

// Release ends the lease. Releasing it again does nothing.
func (l *Lease) Release() {
	l.c.leases.mu.Lock()
	defer l.c.leases.mu.Unlock()
	delete(l.c.leases.all, l)
}

func (l *Lease) sort() {
	slices.Sort(l.keys)
	l.keys = slices.Compact(l.keys)
	l.done = len(l.keys)
}

// has says whether l may hold k. The caller does not hold mu.
func (l *Lease) has(k uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done < len(l.keys) {
		l.sort()
	}
	_, ok := slices.BinarySearch(l.keys, k)
	return ok
}

func leaseKey(k *Key) uint64 { return binary.LittleEndian.Uint64(k[8:]) }

// leased says whether somebody holds a lease of chunk k.
func (c *Cache) leased(k *Key) bool {
	c.leases.mu.Lock()
	defer c.leases.mu.Unlock()
	for l := range c.leases.all {
		if l.has(leaseKey(k)) {
			return true
		}
	}
	return false
}
