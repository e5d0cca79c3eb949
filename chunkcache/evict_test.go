package chunkcache

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ seconds atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(c.seconds.Load(), 0) }

// later moves the clock and has the cache see it, as its ticker would.
func (c *clock) later(h *home, d time.Duration) {
	c.seconds.Add(int64(d / time.Second))
	h.clock.Store(minute(c.now()))
}

func newClock() *clock {
	c := &clock{}
	c.seconds.Store(1_700_000_000)
	return c
}

func TestEvictionTakesWhatWasUsedLongestAgo(t *testing.T) {
	const size = 1 << 20
	clk := newClock()
	h := open(t, t.TempDir(), Options{Now: clk.now, segmentBytes: 8 << 20})
	var keys []Key
	for i := range 20 {
		k, _ := put(t, h.Cache, uint64(i), size)
		keys = append(keys, k)
		clk.later(h, 20*time.Minute)
	}
	for _, i := range []int{0, 3} { // the oldest, but used again
		if _, err := h.ReadAt(t.Context(), keys[i], size, make([]byte, 1), 0, noFill); err != nil {
			t.Fatal(err)
		}
	}
	h = h.reopen(t, Options{Now: clk.now}) // uses survive a restart
	lease := h.Lease()
	lease.Add(keys[5], keys[6])
	freed, err := h.Evict(t.Context(), 10*size+size/2)
	if err != nil || freed < 9*size {
		t.Fatalf("freed %d, %v", freed, err)
	}
	kept := map[int]bool{0: true, 3: true, 5: true, 6: true, 14: true, 15: true, 16: true, 17: true, 18: true, 19: true}
	for i, k := range keys {
		if h.Has(k) != kept[i] {
			t.Errorf("chunk %d is there: %v", i, h.Has(k))
		}
	}
	if s := h.Stats(); s.Chunks != 10 || s.Evicted != 10 {
		t.Errorf("%+v", s)
	}
	if _, err := h.Evict(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if s := h.Stats(); s.Chunks != 2 || !h.Has(keys[5]) {
		t.Errorf("leased chunks were evicted: %+v", s)
	}
	lease.Release()
	lease.Release()
	if _, err := h.Evict(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if s := h.Stats(); s.Chunks != 0 || s.DiskBytes != 0 || len(h.segs.list()) != 0 {
		t.Errorf("an empty cache: %+v, %d files", s, len(h.segs.list()))
	}
}

// Small chunks share disk blocks: evicting them must give the disk back all the same.
func TestEvictionOfSmallChunksFreesTheDisk(t *testing.T) {
	clk := newClock()
	h := open(t, t.TempDir(), Options{Now: clk.now, segmentBytes: 1 << 20})
	type item struct {
		k    Key
		data []byte
	}
	var old, young []item
	for i := range 8000 {
		k, data := put(t, h.Cache, uint64(i), 500)
		if i%10 == 0 {
			young = append(young, item{k, data})
		} else {
			old = append(old, item{k, data})
		}
	}
	clk.later(h, time.Hour)
	for _, it := range young {
		want(t, h.Cache, it.k, it.data)
	}
	before := h.segs.measure()
	if _, err := h.Evict(t.Context(), before/8); err != nil {
		t.Fatal(err)
	}
	if after := h.segs.measure(); after > before/5 {
		t.Errorf("%d bytes on disk before, %d after", before, after)
	}
	check := func(h *home) {
		t.Helper()
		for _, it := range young {
			if want(t, h.Cache, it.k, it.data) {
				t.Fatal("a young chunk was lost")
			}
		}
		if h.Has(old[17].k) {
			t.Error("an old chunk is still there")
		}
	}
	check(h)
	check(h.killed(t, Options{}))
	check(h.reopen(t, Options{}))
}

// Where more than half of a file is live it stays, and the blocks between its chunks are freed.
func TestGapsBetweenSmallChunksAreFreed(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	type item struct {
		k    Key
		data []byte
	}
	var kept []item
	lease := h.Lease()
	for i := range 4000 {
		k, data := put(t, h.Cache, uint64(i), 500)
		if i%250 >= 100 {
			kept = append(kept, item{k, data})
			lease.Add(k)
		}
	}
	before := h.segs.measure()
	if _, err := h.Evict(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if after := h.segs.measure(); after > before*7/10 || len(h.segs.list()) != 1 {
		t.Errorf("%d bytes on disk before, %d after, in %d files", before, after, len(h.segs.list()))
	}
	h = h.reopen(t, Options{})
	for _, it := range kept {
		if want(t, h.Cache, it.k, it.data) {
			t.Fatal("a leased chunk was lost")
		}
	}
}

// Readers, writers, deletions and evictions with compaction at the same time: nobody ever sees a wrong byte.
func TestEvictionUnderLoad(t *testing.T) {
	clk := newClock()
	const limit = 4 << 20
	h := open(t, t.TempDir(), Options{Now: clk.now, MaxBytes: limit, segmentBytes: 512 << 10, Hot: 512})
	type item struct {
		k    Key
		data []byte
	}
	var items []item
	for i := range 600 {
		n := 1 + i*53%20000
		if i%50 == 0 {
			n = 300_000
		}
		k, data := chunk(uint64(i), n)
		items = append(items, item{k, data})
	}
	lease := h.Lease()
	for _, it := range items[:20] {
		lease.Add(it.k)
		if err := h.Put(t.Context(), it.k, it.data); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg, work sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			clk.later(h, time.Minute)
			if _, err := h.Evict(ctx, limit/2); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			if _, err := h.Verify(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			if err := h.Rebuild(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	for w := range 4 {
		work.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			for range 2000 {
				it := items[r.IntN(len(items))]
				if r.IntN(20) == 0 && it.k != items[0].k {
					if err := h.Delete(it.k); err != nil {
						t.Error(err)
					}
					continue
				}
				want(t, h.Cache, it.k, it.data)
			}
		})
	}
	work.Wait()
	stop()
	wg.Wait()
	if !h.Has(items[0].k) {
		t.Error("a leased chunk was evicted")
	}
	if s := h.Stats(); s.Refetched != 0 || s.Evicted == 0 {
		t.Errorf("%+v", s)
	}
	h = h.reopen(t, Options{})
	if v, err := h.Verify(t.Context()); err != nil || v.Wrong != 0 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestTheLimitHolds(t *testing.T) {
	const limit, size = 8 << 20, 256 << 10
	var warned atomic.Int32
	h := open(t, t.TempDir(), Options{MaxBytes: limit, segmentBytes: 1 << 20, Warn: func(err error) {
		if !errors.Is(err, ErrInUse) {
			t.Error(err)
		}
		warned.Add(1)
	}})
	lease := h.Lease()
	for i := range 100 {
		k, data := chunk(uint64(i), size)
		want(t, h.Cache, k, data)
		if used := h.segs.measure(); used > limit+limit/5 {
			t.Fatalf("%d bytes on disk with a limit of %d", used, limit)
		}
	}
	n := warned.Load() // it may have been faster than the evictor
	if _, err := h.Evict(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for i := range 100 { // now nothing can go
		k, data := chunk(uint64(i), size)
		lease.Add(k)
		want(t, h.Cache, k, data)
	}
	if used := h.segs.measure(); used > limit+limit/5 {
		t.Errorf("%d bytes on disk with a limit of %d", used, limit)
	}
	if warned.Load() > n+3 || warned.Load() == 0 {
		t.Errorf("%d warnings", warned.Load())
	}
	if !h.Has(firstKey(size)) {
		t.Error("a leased chunk was evicted")
	}
}

func firstKey(size int) Key { k, _ := chunk(0, size); return k }

func TestVerifyAndUsage(t *testing.T) {
	h := open(t, t.TempDir(), Options{MaxBytes: 1 << 30})
	var keys []Key
	for i, n := range sizes {
		k, _ := put(t, h.Cache, uint64(i), n)
		keys = append(keys, k)
	}
	lease := h.Lease()
	defer lease.Release()
	lease.Add(keys[6])
	h.damage(t, keys[2], 4000)
	h.damage(t, keys[7], 3<<20)
	v, err := h.Verify(t.Context())
	if err != nil || v.Wrong != 2 || v.Chunks != int64(len(sizes)-2) {
		t.Fatalf("%+v, %v", v, err)
	}
	if h.Has(keys[2]) || h.Has(keys[7]) || h.Stats().Refetched != 2 {
		t.Error("wrong chunks were kept")
	}
	u, err := h.Usage(t.Context())
	if err != nil || u.Chunks != int64(len(sizes)-2) || u.InUse != 1<<20 || u.Limit != 1<<30 || u.Files != 1 ||
		u.Bytes != v.Bytes || u.Reclaimable != u.Bytes-u.InUse || u.DiskBytes < u.Bytes || u.Free <= 0 {
		t.Errorf("%+v, %v", u, err)
	}
	limit, err := DefaultLimit(h.dir + "/chunks")
	if err != nil || limit < (u.Free+u.DiskBytes)/2-1<<30 || limit > (u.Free+u.DiskBytes)/2+1<<30 {
		t.Errorf("default limit %d, %v", limit, err)
	}
	if none, err := DefaultLimit(h.dir + "/not/yet/there"); err != nil || none <= 0 {
		t.Errorf("default limit of a directory to be made: %d, %v", none, err)
	}
}
