package chunkcache

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
)

func TestDeleteFreesTheDisk(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	k, data := put(t, h.Cache, 1, 4<<20)
	small, smallData := put(t, h.Cache, 2, 100)
	before := h.segs.measure()
	if err := h.Delete(k); err != nil {
		t.Fatal(err)
	}
	if err := h.commits.flush(); err != nil {
		t.Fatal(err)
	}
	if after := h.segs.measure(); after > before-4<<20 {
		t.Errorf("%d bytes on disk before, %d after", before, after)
	}
	if h.Has(k) || !h.Has(small) {
		t.Error("the wrong chunk is gone")
	}
	for range 2 { // gone from the index, and not found again in the file
		h = h.reopen(t, Options{})
		if err := h.Rebuild(t.Context()); err != nil {
			t.Fatal(err)
		}
		if h.Has(k) || want(t, h.Cache, small, smallData) {
			t.Error("after a restart")
		}
	}
	if !want(t, h.Cache, k, data) {
		t.Error("a deleted chunk was not filled")
	}
}

// Who has found a chunk's place before it was freed does not believe what is there afterwards.
func TestAFreedPlaceIsNotRead(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	k, data := put(t, h.Cache, 1, 100_000)
	e, err := h.find(&k)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Delete(k); err != nil {
		t.Fatal(err)
	}
	if err := h.commits.flush(); err != nil {
		t.Fatal(err)
	}
	if h.read(k, e, make([]byte, 10), 0) {
		t.Error("a freed place was read")
	}
	if !want(t, h.Cache, k, data) || h.Stats().Refetched != 0 {
		t.Errorf("%+v", h.Stats())
	}
}

// Who has found a chunk's entry before it left memory does not believe what is in its place after the chunk, found anew by
// another entry, was deleted.
func TestAForgottenEntryIsNotRead(t *testing.T) {
	h := open(t, t.TempDir(), Options{Hot: 1})
	k, data := put(t, h.Cache, 1, 100_000)
	old, err := h.find(&k)
	if err != nil || old == nil {
		t.Fatal(err)
	}
	s := h.shard(&k)
	for seed := uint64(2); h.commits.flush() == nil; seed++ { // others of its shard push it out
		s.mu.RLock()
		gone := s.entries[k] == nil
		s.mu.RUnlock()
		if gone {
			break
		}
		if other, d := chunk(seed, 10); other[0] == k[0] {
			if err := h.Put(t.Context(), other, d); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := h.Delete(k); err != nil {
		t.Fatal(err)
	}
	if err := h.commits.flush(); err != nil {
		t.Fatal(err)
	}
	if h.read(k, old, make([]byte, 10), 0) {
		t.Error("a freed place was read")
	}
	if !want(t, h.Cache, k, data) {
		t.Error("a deleted chunk was not filled")
	}
}

func TestManyAtOnce(t *testing.T) {
	h := open(t, t.TempDir(), Options{Hot: 256, segmentBytes: 1 << 20})
	type item struct {
		k    Key
		data []byte
	}
	var items []item
	for i := range 400 {
		k, data := chunk(uint64(i), 1+i*37%9000)
		items = append(items, item{k, data})
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 7))
			for range 1500 {
				it := items[r.IntN(len(items))]
				switch r.IntN(8) {
				case 0:
					if err := h.Delete(it.k); err != nil {
						t.Error(err)
					}
				case 1:
					if err := h.Put(t.Context(), it.k, it.data); err != nil {
						t.Error(err)
					}
				default:
					off := r.IntN(len(it.data))
					p := make([]byte, len(it.data)-off)
					_, err := h.ReadAt(t.Context(), it.k, int64(len(it.data)), p, int64(off), func(context.Context) ([]byte, error) { return it.data, nil })
					if err != nil || !bytes.Equal(p, it.data[off:]) {
						t.Errorf("chunk %s at %d: %v", short(it.k), off, err)
					}
				}
			}
		})
	}
	wg.Wait()
	if s := h.Stats(); s.Refetched != 0 {
		t.Errorf("%+v", s)
	}
	stats := h.Stats()
	h = h.reopen(t, Options{})
	if s := h.Stats(); s.Chunks != stats.Chunks || s.Bytes != stats.Bytes {
		t.Errorf("%+v before, %+v after", stats, s)
	}
	var chunks int64
	for _, it := range items {
		if h.Has(it.k) {
			chunks++
			if want(t, h.Cache, it.k, it.data) {
				t.Errorf("chunk %s was wrong on disk", short(it.k))
			}
		}
	}
	if chunks != stats.Chunks {
		t.Errorf("%d chunks where %d were counted", chunks, stats.Chunks)
	}
}
