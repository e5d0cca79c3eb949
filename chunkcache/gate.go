package chunkcache

import (
	"sync"

	"github.com/dgraph-io/badger/v4"
)

// gate lets users of the database through until it is shut. Shutting it waits for those who are inside: badger unmaps
// its files on Close, and who still reads them is killed.
type gate struct {
	mu     sync.Mutex
	empty  sync.Cond // on mu
	inside int       // guarded by mu
	closed bool      // guarded by mu
}

func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	g.inside++
	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.closed {
		g.empty.Broadcast()
	}
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.empty.L = &g.mu
	for g.inside > 0 {
		g.empty.Wait()
	}
}

// view is a transaction of the database that reads.
func (c *Cache) view(fn func(*badger.Txn) error) error {
	if err := c.users.enter(); err != nil {
		return err
	}
	defer c.users.leave()
	return c.db.View(fn)
}

// update is a transaction of the database that writes.
func (c *Cache) update(fn func(*badger.Txn) error) error {
	if err := c.users.enter(); err != nil {
		return err
	}
	defer c.users.leave()
	return c.db.Update(fn)
}
