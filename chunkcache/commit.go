package chunkcache

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// The index is written in batches by one goroutine, so that storing a small chunk costs no transaction.
const (
	gather    = 10 * time.Millisecond // how long a batch waits for more
	queueFull = 1 << 15               // operations, from which on who stores has to wait
	retry     = time.Second           // after the database could not be written
)

// op is one change of the index.
type op struct {
	kind   opKind
	key    Key
	e      *entry // held in memory by its pending count until the change is made
	record record // of opPut; of opTouch only used
}

type opKind uint8

const (
	opPut opKind = iota
	opDelete
	opDrop  // an opDelete whose place tidy gives back, with those around it
	opTouch // only the time of last use changes
)

// committer writes changes of the index in the order they were made.
type committer struct {
	c    *Cache
	wake chan struct{} // holds one token while there is something to do
	quit chan struct{}
	done chan struct{}

	mu       sync.Mutex
	cond     sync.Cond // on mu: a batch was written, or given up
	queue    []op      // guarded by mu
	added    uint64    // guarded by mu; operations ever
	finished uint64    // guarded by mu; of those, written
	stopped  bool      // guarded by mu
	err      error     // guarded by mu; the last batch's
}

func newCommitter(c *Cache) *committer {
	w := &committer{c: c, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	w.cond.L = &w.mu
	go w.run()
	return w
}

// add queues o. It never waits, so that it can be called with a shard locked: who stores calls room before.
func (w *committer) add(o op) {
	o.e.pending.Add(1)
	w.mu.Lock()
	w.queue = append(w.queue, o)
	w.added++
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// room waits while the queue is full. It answers false when the queue stays full, since the database cannot be written.
func (w *committer) room() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) >= queueFull && w.err == nil && !w.stopped {
		w.cond.Wait()
	}
	return len(w.queue) < queueFull
}

// flush waits until everything queued so far is in the database, or answers why it could not be written.
func (w *committer) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for upto := w.added; w.finished < upto; w.cond.Wait() {
		switch {
		case w.err != nil:
			return w.err
		case w.stopped:
			return ErrClosed
		}
	}
	return nil
}

// stop writes what is queued and ends the goroutine.
func (w *committer) stop() error {
	close(w.quit)
	<-w.done
	return w.err
}

func (w *committer) run() {
	defer close(w.done)
	t := time.NewTimer(0)
	defer t.Stop()
	for last := false; !last; {
		select {
		case <-w.wake:
			t.Reset(gather)
			select {
			case <-t.C:
			case <-w.quit:
			}
		case <-w.quit:
			last = true
		}
		for !w.batch() && !last {
			t.Reset(retry)
			select {
			case <-t.C:
			case <-w.quit:
				last = true
			}
		}
	}
	w.mu.Lock()
	w.stopped = true
	w.cond.Broadcast()
	w.mu.Unlock()
}

// batch writes what is queued now. When that fails it stays queued, and batch answers false.
func (w *committer) batch() bool {
	finished := w.c.segs.finished() // what they still have to have indexed is in the queue
	w.mu.Lock()
	ops := w.queue
	w.queue = nil
	w.mu.Unlock()
	if len(ops) == 0 {
		return true
	}
	err := w.write(ops)
	if err == nil {
		w.settle(ops)
		_ = w.c.seal(finished) // what is not sealed now is so after another batch
	}
	w.mu.Lock()
	first := err != nil && w.err == nil
	w.err = err
	if err != nil {
		w.queue = append(ops, w.queue...)
	} else {
		w.finished += uint64(len(ops))
	}
	w.cond.Broadcast()
	w.mu.Unlock()
	if first {
		w.c.warn(err)
	}
	return err == nil
}

// settle does what waited for ops to be in the database.
func (w *committer) settle(ops []op) {
	freed := false
	for _, o := range ops {
		switch o.kind {
		case opDelete:
			w.c.segs.free(o.e)
			freed = true
		case opDrop:
			o.e.seg.holed.Store(true)
		}
		if o.e.pending.Add(-1) == 0 && o.e.dead.Load() {
			w.c.bury(o.key, o.e)
		}
	}
	if freed {
		w.c.full.again()
	}
}

// write puts ops into the database: first what changes entries, then times of last use of those that are still there.
func (w *committer) write(ops []op) error {
	if err := w.c.databaseRoom(); err != nil {
		return err
	}
	b := w.c.db.NewWriteBatch()
	defer b.Cancel()
	touches := 0
	for _, o := range ops {
		var err error
		switch o.kind {
		case opPut:
			err = b.Set(chunkKey(o.key), o.record.encode())
		case opDelete, opDrop:
			err = b.Delete(chunkKey(o.key))
		case opTouch:
			touches++
		}
		if err != nil {
			return err
		}
	}
	if err := b.Flush(); err != nil || touches == 0 {
		return err
	}
	return w.writeUses(ops)
}

// writeUses changes the times of last use in the database.
func (w *committer) writeUses(ops []op) error {
	b := w.c.db.NewWriteBatch()
	defer b.Cancel()
	err := w.c.db.View(func(txn *badger.Txn) error {
		for _, o := range ops {
			if o.kind != opTouch {
				continue
			}
			item, err := txn.Get(chunkKey(o.key))
			if errors.Is(err, badger.ErrKeyNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			v, err := item.ValueCopy(nil)
			if err != nil {
				return err
			}
			if len(v) < recordHead {
				continue
			}
			binary.LittleEndian.PutUint32(v[recordHead-4:], o.record.used)
			if err := b.Set(chunkKey(o.key), v); err != nil {
				return err
			}
			o.e.saved.Store(o.record.used)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.Flush()
}
