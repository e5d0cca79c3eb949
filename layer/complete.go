package layer

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/microsandbox/msb-fs/internal/priority"
)

const (
	batchBytes = 4 << 20   // of the blob, that Complete asks for at once
	batchGap   = 128 << 10 // of the blob that nobody needs, rather than another request
	batches    = 4         // requests of Complete under way
)

// Complete brings every chunk of the layer into the store, in blob order, in few large requests. They are of the
// background class unless ctx says predicted. While the layer streams, Complete waits for its verified end, or for as long
// as it gets on.
//
// An imported index is verified by reading the whole blob once, in order: see Trusted.
func (l *Layer) Complete(ctx context.Context) error {
	if priority.From(ctx) == priority.OnDemand {
		ctx = priority.With(ctx, priority.Background)
	}
	if err := l.verify(ctx); err != nil {
		return err
	}
	if err := l.wait(ctx, &l.stored, true, func() bool { return l.sealed }); err != nil {
		return err
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := l.Err(); err != nil || l.o.Chunks == nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(batches)
	err := l.batches(gctx, func(from, to int, sparse bool) {
		g.Go(func() error {
			lowly(gctx)
			return l.bring(gctx, from, to, sparse)
		})
	})
	if werr := g.Wait(); werr != nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("complete layer %s: %w", l.d.Digest, err)
	}
	l.have.Store(l.size)
	l.mu.Lock()
	if err = l.err; err == nil && l.mode != Full {
		l.mode, l.reason = Full, l.reason+allStored
	}
	l.lazily = ""
	l.mu.Unlock()
	if err == nil {
		l.remember()
	}
	return err
}

// batches calls do with runs of chunks [from, to) that are not stored yet.
func (l *Layer) batches(ctx context.Context, do func(from, to int, sparse bool)) error {
	var recs []chunkRec
	for from := 0; ; from += len(recs) {
		err := l.look(func() { recs = append(recs[:0], l.t.chunks[from:l.t.wholeSpans(from, from+maxBatch)]...) })
		if err != nil || len(recs) == 0 {
			return err
		}
		missing := make([]bool, len(recs)) // found out without the lock
		for i := range recs {
			missing[i] = !recs[i].hole() && !l.o.Chunks.Has(recs[i].digest)
		}
		for at := from; ; {
			var start, end int
			var sparse bool
			if err := l.look(func() { start, end, sparse = l.t.batch(at, from, missing) }); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if start == end {
				break
			}
			do(start, end, sparse)
			at = end
		}
	}
}

// wholeSpans is the first chunk at or after chunk to that begins in another span than the one before it: what is behind
// chunk from and in one span is inflated once. mu is held.
func (t *table) wholeSpans(from, to int) int {
	to = min(to, len(t.chunks))
	for to > from && to < len(t.chunks) && t.chunks[to].span == t.chunks[to-1].span {
		to++
	}
	return max(from, to)
}

// batch finds the next batch at or after chunk from; missing says which chunks from number base on are. mu is held.
func (t *table) batch(from, base int, missing []bool) (start, end int, sparse bool) {
	limit := min(base+len(missing), len(t.chunks))
	for start = from; start < limit && !missing[start-base]; start++ {
	}
	if start >= limit {
		return 0, 0, false
	}
	first := &t.chunks[start]
	end = start + 1
	if first.sparse() {
		for end < limit && t.chunks[end].sparse() && t.chunks[end].span == first.span && t.chunks[end].inner == first.inner {
			end++
		}
		return start, end, true
	}
	begin, covered, _ := t.reach(start)
	for n := end; n < limit && !t.chunks[n].sparse(); n++ {
		if !missing[n-base] {
			continue
		}
		off, e, _ := t.reach(n)
		// What the batch reads anyway may as well be used: a single zstd frame is one batch.
		if off-covered > batchGap || e > covered && e-begin > batchBytes {
			break
		}
		covered, end = max(covered, e), n+1
	}
	return start, end, false
}

// bring fetches the chunks [from, to) that are not stored by now.
func (l *Layer) bring(ctx context.Context, from, to int, sparse bool) error {
	st := l.o.Chunks
	put := func(_ int, c *chunkRec, data []byte) error {
		if err := c.check(data); err != nil {
			return err
		}
		return st.Put(ctx, c.digest, data)
	}
	if sparse {
		return l.sparse(ctx, from, to, put)
	}
	var r *run
	var perr error
	err := l.look(func() {
		r, perr = l.t.plan(from, to-1)
	})
	if err == nil {
		err = perr
	}
	if err != nil {
		return err
	}
	missing := func(_ int, c *chunkRec) bool { return !st.Has(c.digest) }
	return l.carry(ctx, r, missing, put)
}
