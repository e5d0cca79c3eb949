package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// keepRun is how much a flight keeps for those who join it, bytes of chunks.
const keepRun = 16 << 20

// frameAhead is how far a flight reads on behind its chunk where nothing but reading from the start leads there, as in a
// single zstd frame, bytes of chunks: who reads on from there should not have to begin at the start once more for each.
const frameAhead = 256 << 20

// flight is a run that is being fetched. Who wants a chunk of it waits for it instead of inflating the same span again.
type flight struct {
	run   *run
	class priority.Class
	stop  context.CancelCauseFunc
	keeps bool // all chunks are kept for those who join

	wanted map[int]bool // guarded by Layer.mu; by those who joined: the chunks that are kept, where not all are; nil where all are
	at     int          // guarded by Layer.mu; the number of the last chunk that it is too late for, where not all are kept
	landed bool         // guarded by Layer.mu; the run's bytes are in memory: nobody could have them sooner

	waiters int            // guarded by Layer.mu
	got     map[int][]byte // guarded by Layer.mu; what has come, by chunk number
	came    signal         // guarded by Layer.mu; when there is more of it, or the flight has ended
	useful  bool           // guarded by Layer.mu; somebody got something: the rest is fetched in any case
	ended   bool           // guarded by Layer.mu
	err     error          // guarded by Layer.mu
}

// Fetch reads c, a chunk that Chunk returned, from the blob. The bytes are checked against c's digest. Whole chunks that
// pass by on the way are put into the store, so that their neighbours need no fetch of their own. The bytes may be shared
// with others who fetch the same chunk: they are not to be changed.
func (l *Layer) Fetch(ctx context.Context, c Chunk) ([]byte, error) {
	var rec chunkRec
	err := l.look(func() {
		if l.t.sane(c.Index) {
			rec = l.t.chunks[c.Index]
			if rec.digest == (Digest{}) {
				rec.digest = l.known[c.Index]
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if rec.size == 0 || rec.digest != c.Digest || rec.len() != c.Size {
		return nil, fmt.Errorf("fetch from layer %s: chunk %d is not one of its", l.d.Digest, c.Index)
	}
	if rec.hole() {
		return make([]byte, c.Size), nil
	}
	return l.fetchTwice(ctx, c.Index, &rec)
}

// learn fetches chunk num in order to know its digest.
func (l *Layer) learn(ctx context.Context, num int) (Digest, error) {
	l.mu.RLock()
	rec := chunkRec{}
	if l.t.sane(num) {
		rec = l.t.chunks[num]
	}
	l.mu.RUnlock()
	data, err := l.fetchTwice(ctx, num, &rec)
	if err != nil {
		return Digest{}, err
	}
	d := Digest(sha256.Sum256(data))
	l.note(num, d)
	return d, nil
}

// note takes down what the digest of chunk num is.
func (l *Layer) note(num int, d Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		l.known = make(map[int]Digest)
	}
	l.known[num] = d
}

func (l *Layer) fetchTwice(ctx context.Context, num int, rec *chunkRec) ([]byte, error) {
	for try := 0; ; try++ {
		data, err := l.fetch(ctx, num, rec)
		if err == nil {
			err = rec.check(data)
		}
		// Bytes that are wrong may come from a bad proxy or cache on the way: once more.
		if err == nil || try > 0 || !errors.Is(err, ErrCorrupt) {
			if err != nil {
				return nil, fmt.Errorf("fetch from layer %s: %w", l.d.Digest, err)
			}
			return data, nil
		}
	}
}

func (l *Layer) fetch(ctx context.Context, num int, rec *chunkRec) ([]byte, error) {
	if rec.sparse() {
		var data []byte
		err := l.sparse(ctx, num, num+1, func(_ int, _ *chunkRec, b []byte) error {
			data = b
			return nil
		})
		return data, err
	}
	for {
		f, err := l.join(ctx, num)
		if err != nil {
			return nil, err
		}
		data, err := l.await(ctx, f, num)
		if data == nil && f.wanted != nil && ctx.Err() == nil {
			continue // it was another's, who has given up
		}
		if err == nil && data == nil {
			err = corrupt("chunk %s has other bytes", rec.digest)
		}
		return data, err
	}
}

// await waits until f has brought chunk num.
func (l *Layer) await(ctx context.Context, f *flight, num int) ([]byte, error) {
	for {
		l.mu.Lock()
		data, ok := f.got[num]
		if ok || f.ended {
			f.waiters--
			f.useful = f.useful || ok
			defer l.mu.Unlock()
			if ok {
				return data, nil
			}
			return nil, f.err
		}
		came := f.came.wait()
		l.mu.Unlock()
		select {
		case <-came:
		case <-ctx.Done():
			l.leave(f)
			return nil, context.Cause(ctx)
		}
	}
}

// join finds a flight that brings chunk num, no less urgent than ctx, or starts one.
func (l *Layer) join(ctx context.Context, num int) (*flight, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	class := priority.From(ctx)
	for _, f := range l.flights {
		if f.takes(num, class) {
			f.waiters++
			return f, nil
		}
	}
	r, err := l.t.plan(num, l.t.around(num))
	if err != nil {
		return nil, err
	}
	fctx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &flight{run: r, class: class, stop: stop, keeps: r.len() <= keepRun, waiters: 1, got: make(map[int][]byte)}
	l.flights = append(l.flights, f)
	l.owned.Go(func() { l.fly(fctx, f, num) })
	return f, nil
}

// takes says whether f will bring chunk num no later than a flight of its own would, and sees to it that it does. Layer.mu is held.
func (f *flight) takes(num int, class priority.Class) bool {
	if f.class > class && !f.landed || !f.keeps && f.wanted == nil || f.wanted != nil && num <= f.at {
		return false
	}
	if _, ok := slices.BinarySearch(f.run.nums, num); !ok {
		return false
	}
	if f.wanted != nil {
		f.wanted[num] = true
	}
	return true
}

// carry reads a run for its caller, who wants some of its chunks and puts them into the store, once more if they come wrong. What others
// want of it meanwhile they get on the way.
func (l *Layer) carry(ctx context.Context, r *run, want func(int, *chunkRec) bool, put func(int, *chunkRec, []byte) error) error {
	f := &flight{run: r, class: priority.From(ctx), stop: func(error) {}, got: make(map[int][]byte), wanted: make(map[int]bool)}
	l.mu.Lock()
	l.flights = append(l.flights, f)
	l.mu.Unlock()
	var err error
	for range 2 {
		l.mu.Lock()
		f.at, f.landed = -1, false
		l.mu.Unlock()
		err = l.each(ctx, r,
			func(n int, c *chunkRec) bool {
				own := want(n, c)
				l.mu.Lock()
				defer l.mu.Unlock()
				f.landed = r.end-r.off <= memRun
				if own = own || f.wanted[n]; !own {
					f.at = n
				}
				return own
			},
			func(n int, c *chunkRec, data []byte) error {
				err := put(n, c, data)
				l.mu.Lock()
				f.at = n
				wanted := err == nil && f.wanted[n]
				l.mu.Unlock()
				if wanted {
					l.hand(f, n, bytes.Clone(data))
				}
				return err
			})
		if !errors.Is(err, ErrCorrupt) {
			break
		}
		l.distrust(r.off, r.end-r.off)
	}
	l.end(f, err)
	return err
}

// ahead is how much of the blob is asked for at once at least where chunks are found by a TOC, bytes: small files that lie
// together are used together, and 64 KiB take less time than another round trip does.
const ahead = 64 << 10

// around is the last chunk that is worth fetching together with chunk n. mu is held.
func (t *table) around(n int) int {
	if !t.form.parts() || !t.sane(n) {
		return n
	}
	last := n
	off, _, _ := t.reach(n)
	for k := n + 1; t.sane(k); k++ {
		if _, end, _ := t.reach(k); end-off > ahead {
			break
		}
		last = k
	}
	return last
}

// len is how many bytes the chunks of r have.
func (r *run) len() int64 {
	var n int64
	for i := range r.chunks {
		n += r.chunks[i].len()
	}
	return n
}

// leave gives up waiting for f. A flight that nobody waits for any more is called off.
func (l *Layer) leave(f *flight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.waiters--; f.waiters == 0 && !f.useful {
		f.stop(context.Canceled)
	}
}

// fly fetches a flight's run. num is the chunk it was started for.
func (l *Layer) fly(ctx context.Context, f *flight, num int) {
	st := l.o.Chunks
	off, size, ahead := f.run.off, f.run.end-f.run.off, int64(frameAhead)
	err := l.each(ctx, f.run,
		func(n int, c *chunkRec) bool {
			l.mu.Lock()
			f.landed = size <= memRun
			l.mu.Unlock()
			return n == num || f.keeps || st != nil && !st.Has(c.digest)
		},
		func(n int, c *chunkRec, data []byte) error {
			if err := c.check(data); err != nil {
				return err
			}
			d := c.digest
			if d == (Digest{}) {
				d = sha256.Sum256(data)
				l.note(n, d)
			}
			if n == num || f.keeps {
				l.hand(f, n, bytes.Clone(data))
			}
			if (n != num || c.digest != d) && st != nil && !st.Has(d) {
				_ = st.Put(ctx, d, data) // it can be fetched again
				if !f.keeps && !st.Has(d) && n > num {
					return io.EOF // the disk is full: reading ahead is in vain
				}
			}
			if !f.keeps && n >= num {
				if ahead -= c.len(); ahead <= 0 || st == nil {
					return io.EOF
				}
			}
			return nil
		})
	if errors.Is(err, ErrCorrupt) {
		l.distrust(off, size)
	}
	l.end(f, err)
	f.stop(nil)
}

// end takes f, which brings nothing more, off the list.
func (l *Layer) end(f *flight, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.ended, f.err = true, err
	f.came.wake()
	l.flights = slices.DeleteFunc(l.flights, func(o *flight) bool { return o == f })
}

// hand gives chunk n to those who wait for it.
func (l *Layer) hand(f *flight, n int, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.got[n] = data
	f.came.wake()
}

// distrust tells the blob, if it wants to know, that [off,+n) came wrong, so that it looks elsewhere the next time.
func (l *Layer) distrust(off, n int64) {
	l.mu.Lock()
	l.small = nil
	l.mu.Unlock()
	if d, ok := l.blob.(interface{ Distrust(off, n int64) }); ok {
		d.Distrust(off, n)
	}
}

// sparse reads chunks [from, to), all of one sparse file, and calls emit with those that are not holes. The file's tar entry is
// read from its header on, since only that tells where its data belongs.
func (l *Layer) sparse(ctx context.Context, from, to int, emit func(num int, c *chunkRec, data []byte) error) error {
	var r *run
	var own []chunkRec
	err := l.look(func() {
		r = l.t.sparseRun(from)
		own = append(own, l.t.chunks[from:to]...)
	})
	if err != nil {
		return err
	}
	if r == nil {
		return fmt.Errorf("chunk %d is not in the index", from)
	}
	src := &runReader{l: l, ctx: ctx, run: r, span: -1}
	defer src.close()
	if err := src.seek(&own[0]); err != nil {
		return err
	}
	tr := tar.NewReader(src.r)
	if _, err := tr.Next(); err != nil && !errors.Is(err, tar.ErrInsecurePath) {
		return tarError(src.explain(err), src.pos)
	}
	var off int64
	for i := range own {
		c := &own[i]
		if c.hole() {
			continue
		}
		if _, err := io.CopyN(io.Discard, tr, c.offset-off); err != nil {
			return src.explain(err)
		}
		data := make([]byte, c.len())
		if _, err := io.ReadFull(tr, data); err != nil {
			return src.explain(err)
		}
		off = c.offset + c.len()
		if err := c.check(data); err != nil {
			return err
		}
		if err := emit(from+i, c, data); err != nil {
			return err
		}
	}
	return nil
}

// sparseRun is a run from the span where chunk n's header is to the end of the blob, to be read as far as needed. mu is
// held.
func (t *table) sparseRun(n int) *run {
	if !t.sane(n) || t.form.parts() {
		return nil
	}
	k := t.chunks[n].span
	s := t.spans[k]
	if s.off < 0 || s.off >= t.end || uint64(s.window)+uint64(s.windowLen) > uint64(len(t.windows)) {
		return nil
	}
	return &run{
		form: t.form, off: s.off, end: t.end, base: k, spans: []spanRec{s},
		zwin: [][]byte{bytes.Clone(t.windows[s.window : uint64(s.window)+uint64(s.windowLen)])},
	}
}
