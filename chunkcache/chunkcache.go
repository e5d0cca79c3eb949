// Package chunkcache keeps the chunks of images by the sha256 of their bytes: each is fetched once per host, verified
// before anybody sees it, and read straight from the file that holds it.
//
// On disk a chunk is a self-describing record in an append-only segment file (see record.go); badger holds only where
// each chunk is. The index is disposable: it can be rebuilt from the segments. Data is appended first and indexed
// afterwards, so that a process that is killed leaves at worst records without an index entry, which the next Open
// finds again.
//
// What was not seen to be right in this process's life is not trusted: blocks are checked against their CRC-32C on
// first use, and after an unclean stop a whole chunk against its sha256. Wrong bytes are never returned: the chunk is
// dropped, counted and fetched again.
//
// Lock order: Cache.evicting, leases.mu, Lease.mu, entry.checking, shard.mu, then segments.mu, committer.mu or gate.mu. Only
// evicting and checking are held during file I/O of chunk data or an access to the database, none during a fill.
package chunkcache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Key names a chunk: the sha256 of its bytes.
type Key = [32]byte

// MaxSize is the longest chunk that is accepted, bytes.
const MaxSize = 256 << 20

var (
	// ErrDigest is answered for bytes that are not the chunk they were said to be.
	ErrDigest = errors.New("digest mismatch")
	// ErrClosed is answered by a cache that was closed.
	ErrClosed = errors.New("chunk cache is closed")
)

// Options of a Cache. The zero value works.
type Options struct {
	// MaxBytes is the disk space that chunks may take; what was used longest ago goes first. 0: no limit but the disk's.
	MaxBytes int64
	// MinFree is the space of the file system that is left alone, bytes; 0 means 64 MiB, negative none. The database
	// lives on it: badger writes through memory maps, and dies where there is no room behind one.
	MinFree int64
	// Buffers bounds the bytes of chunks being filled at any moment; 0 means 64 MiB. One chunk is always let through.
	// A quarter of it is for what is fetched ahead.
	Buffers int64
	// Hot is how many chunks' places are kept in memory at least; 0 means 65536 (about 15 MiB).
	Hot int
	// Warn is told, once per occasion and from any goroutine, what a user should know: that the disk is full or the
	// database cannot be written. Nil: nobody is told.
	Warn func(error)
	// Now is the clock of last use; nil means time.Now.
	Now func() time.Time

	segmentBytes int64 // where a segment ends and the next begins; 0 means defaultSegment; for tests
}

// Cache holds chunks. It is safe for concurrent use.
type Cache struct {
	dir     string
	o       Options
	db      *badger.DB
	segs    *segments
	commits *committer
	users   gate
	buffers *budget
	shards  [shardCount]shard

	epoch  uint32 // immutable: entries of an earlier one were written before an unclean stop
	stats  counters
	full   fullness
	blocks sync.Pool // *[]byte, to check blocks in

	life      context.Context // ends with Close; for the goroutines the cache owns
	end       context.CancelFunc
	owned     sync.WaitGroup
	closed    atomic.Bool
	recovered atomic.Bool   // nothing is left that only the files know
	clock     atomic.Uint32 // the minute, kept by the ticker so that a hit costs no system call

	leases   leases
	over     chan struct{} // wakes the evictor
	evicting sync.Mutex    // one compaction, rebuild or the like at a time
}

// Open opens the cache whose data files are in dir, which it makes (0700) when it is not there, and whose index is in
// db under the prefix "c/". The caller owns db and closes it after the cache. One Cache at a time per dir: db's own lock
// keeps other processes out.
func Open(db *badger.DB, dir string, o Options) (*Cache, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Buffers <= 0 {
		o.Buffers = 64 << 20
	}
	if o.Hot <= 0 {
		o.Hot = 65536
	}
	if o.MinFree == 0 {
		o.MinFree = 64 << 20
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open chunk cache %s: %w", dir, err)
	}
	segs, err := openSegments(dir, o.segmentBytes)
	if err != nil {
		return nil, fmt.Errorf("open chunk cache %s: %w", dir, err)
	}
	c := &Cache{dir: dir, o: o, db: db, segs: segs, buffers: newBudget(o.Buffers), over: make(chan struct{}, 1)}
	for i := range c.shards {
		c.shards[i].entries = make(map[Key]*entry)
		c.shards[i].flights = make(map[Key]*flight)
	}
	c.clock.Store(minute(o.Now()))
	c.life, c.end = context.WithCancel(context.Background())
	c.commits = newCommitter(c)
	if err := c.begin(); err != nil {
		c.end()
		c.owned.Wait()
		err = errors.Join(err, c.commits.stop())
		segs.close()
		return nil, fmt.Errorf("open chunk cache %s: %w", dir, err)
	}
	c.owned.Go(c.tick)
	if o.MaxBytes > 0 {
		c.owned.Go(c.evictor)
	}
	return c, nil
}

// begin finds out how the cache was left, notes that it is in use, and recovers what an unclean stop left unindexed.
func (c *Cache) begin() error {
	active, known, err := c.loadMeta()
	if err != nil {
		return err
	}
	mark := filepath.Join(c.dir, markName)
	_, err = os.Lstat(mark)
	clean := errors.Is(err, os.ErrNotExist)
	if err != nil && !clean {
		return err
	}
	if err := c.loadSeals(); err != nil {
		return err
	}
	if clean && known {
		c.segs.resume(active)
	} else {
		c.epoch++
		if err := c.saveMeta(); err != nil {
			return err
		}
	}
	if clean {
		if err := makeMark(mark); err != nil {
			return err
		}
	} else {
		for _, g := range c.segs.list() {
			g.holed.Store(true) // places may have been left to a tidy that never came
		}
	}
	if clean && (known || len(c.segs.list()) == 0) {
		c.recovered.Store(true)
		return nil
	}
	held := c.segs.hold()
	if known { // only the segments of the last moments: quickly read
		if err := c.recover(held); err != nil {
			return err
		}
	}
	c.owned.Go(func() {
		c.evicting.Lock()
		defer c.evicting.Unlock()
		if known || c.recover(held) == nil {
			_ = c.count(c.life)
		}
	})
	return nil
}

// Close waits for what is being written and closes the cache's files, but not the database. Reads after it answer
// ErrClosed.
func (c *Cache) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.end()
	c.owned.Wait()
	c.saveUses()
	err := c.commits.stop()
	if err == nil {
		err = c.saveMeta()
	}
	c.users.shut()
	if err == nil {
		err = c.segs.sync()
	}
	if err == nil { // badger hangs in Sync when it is closed; that was noticed above
		err = c.db.Sync()
	}
	c.segs.close()
	if err == nil && !c.recovered.Load() {
		return nil // the mark stays, so that the rest is recovered next time
	}
	if err != nil { // the mark stays: what is on disk has to be checked
		return fmt.Errorf("close chunk cache %s: %w", c.dir, err)
	}
	if err := os.Remove(filepath.Join(c.dir, markName)); err != nil {
		return fmt.Errorf("close chunk cache: %w", err)
	}
	return nil
}

// markName is the file that is there while the cache is open: who finds it at Open was not stopped cleanly.
const markName = "open"

// makeMark makes the mark durable, so that a loss of power cannot undo it while keeping what was written later.
func makeMark(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// tick keeps the clock, and from time to time writes down when chunks were last used.
func (c *Cache) tick() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	saved := c.o.Now()
	for {
		select {
		case <-c.life.Done():
			return
		case <-t.C:
		}
		now := c.o.Now()
		c.clock.Store(minute(now))
		if now.Sub(saved) >= saveUsesEvery {
			saved = now
			c.saveUses()
		}
	}
}

// minute is t in minutes since the epoch, the unit of last use.
func minute(t time.Time) uint32 { return uint32(t.Unix() / 60) }

func (c *Cache) warn(err error) {
	if c.o.Warn != nil {
		c.o.Warn(err)
	}
}

// verify says whether data is the chunk k of size bytes.
func verify(k Key, size int64, data []byte) error {
	if int64(len(data)) != size {
		return fmt.Errorf("chunk %s: %d bytes where the layer says %d: %w", short(k), len(data), size, ErrDigest)
	}
	if got := sum256(data); got != k {
		return fmt.Errorf("chunk %s: the bytes hash to %s: %w", short(k), short(got), ErrDigest)
	}
	return nil
}

func sum256(b []byte) Key { return sha256.Sum256(b) }

// short is enough of a key to recognise it in a message.
func short(k Key) string { return fmt.Sprintf("sha256:%x", k[:6]) }
