package layer

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
)

// Place is where a chunk is.
type Place struct {
	Num      int   // the chunk's number
	Offset   int64 // of its first byte in the file
	Size     int64 // bytes, never 0
	From, To int64 // the bytes of the blob that have to be read for it
}

// Place says, without waiting for anything, where the chunk is that holds byte off of an entry. ok is false where that cannot
// be told (the layer still streams), where nothing has to be read (a hole), and where no run of the blob is the chunk's own
// (a sparse file).
func (l *Layer) Place(entry int, off int64) (p Place, ok bool) {
	_ = l.look(func() {
		n := l.t.find(entry, off)
		if !l.sealed || n == none || !l.t.sane(int(n)) || l.t.chunks[n].size&chunkFlags != 0 {
			return
		}
		c := &l.t.chunks[n]
		from, to, _ := l.t.reach(int(n))
		p = Place{Num: int(n), Offset: c.offset, Size: c.len(), From: from, To: to}
		ok = from >= 0 && from < to && to <= l.t.end
	})
	return p, ok
}

// Bring puts chunks into the store by one read of the blob: from the first one's place to the last one's. nums are
// numbers that Place gave, ascending; what is stored already is left out, at the ends also of what is read. Other chunks that have
// to be inflated on the way are stored too. Without a Store it does nothing.
func (l *Layer) Bring(ctx context.Context, nums []int) error {
	st := l.o.Chunks
	if st == nil {
		return nil
	}
	nums, err := l.missing(nums)
	if err != nil || len(nums) == 0 {
		return err
	}
	var r *run
	var perr error
	if err = l.look(func() { r, perr = l.t.plan(nums[0], nums[len(nums)-1]) }); err == nil {
		err = perr
	}
	if err != nil {
		return err
	}
	// Where nothing can be read through from one span to the next, what lies between has not been asked for.
	want := func(n int, c *chunkRec) bool {
		_, asked := slices.BinarySearch(nums, n)
		return (asked || !r.form.parts()) && (c.digest == (Digest{}) || !st.Has(c.digest))
	}
	put := func(n int, c *chunkRec, data []byte) error {
		if err := c.check(data); err != nil {
			return err
		}
		d := c.digest
		if d == (Digest{}) {
			d = sha256.Sum256(data)
			l.note(n, d)
		}
		return st.Put(ctx, d, data)
	}
	if err := l.carry(ctx, r, want, put); err != nil {
		return fmt.Errorf("fetch from layer %s: %w", l.d.Digest, err)
	}
	return nil
}

// missing returns those of nums that are chunks with a place of their own and not stored yet.
func (l *Layer) missing(nums []int) ([]int, error) {
	own := make([]int, 0, len(nums))
	digests := make([]Digest, 0, len(nums))
	err := l.look(func() {
		for _, n := range nums {
			if !l.t.sane(n) || l.t.chunks[n].size&chunkFlags != 0 {
				continue
			}
			d := l.t.chunks[n].digest
			if d == (Digest{}) {
				d = l.known[n]
			}
			own, digests = append(own, n), append(digests, d)
		}
	})
	out := own[:0]
	for i, n := range own { // the store is asked without the lock
		if digests[i] == (Digest{}) || !l.o.Chunks.Has(digests[i]) {
			out = append(out, n)
		}
	}
	return out, err
}
