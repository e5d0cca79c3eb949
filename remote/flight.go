package remote

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
)

const (
	// rangeSize is the longest range of one request, bytes: long enough that a round trip between two is hidden by the others
	// under way, short enough that what is urgent need not wait long for what is not.
	rangeSize = 1 << 20
	// joinGap is the most bytes fetched in vain to make one request of two neighbours, bytes.
	joinGap = 32 << 10
)

var (
	errNoRange = errors.New("the registry has no Range support") // read the spool instead
	errStale   = errors.New("the buffered range is gone")        // plan again
)

// flight is one range of a blob on its way, and who waits for it.
type flight struct {
	blob   *Blob
	ctx    context.Context // ends when nobody wants it any more
	cancel context.CancelFunc

	// Guarded by Blob.mu:
	off, n  int64 // the range; it may grow until started
	class   priority.Class
	ticket  *ticket // while it waits or runs
	started bool
	refs    int           // readers that want it
	kept    int64         // not 0: read ahead, wanted though nobody reads it yet; what it counts for, bytes
	buf     []byte        // n bytes once started; those before got never change
	got     int64         // bytes of buf that have arrived
	err     error         // why no more will come
	over    bool          // no more will come, with or without err
	need    int64         // wake waiters when got reaches it
	change  chan struct{} // closed then, or when over
}

// part returns how to come by bytes from off on, up to end at most, and puts a flight under way if there is none. The
// caller holds b.mu and releases the part's flight.
func (b *Blob) part(off, end int64, class priority.Class) part {
	if b.spool != nil {
		return part{nil, off, end}
	}
	i, found := b.find(off)
	if found {
		f := b.flights[i]
		b.join(f, class)
		return part{f, off, min(end, f.off+f.n)}
	}
	if i < len(b.flights) {
		if next := b.flights[i]; end > next.off {
			end = next.off // the rest is its
		} else if b.extend(next, off, next.off+next.n, class) && next.off-end <= joinGap {
			return part{next, off, end}
		}
	}
	if i > 0 {
		prev := b.flights[i-1]
		if off-(prev.off+prev.n) <= joinGap && b.extend(prev, prev.off, end, class) {
			return part{prev, off, end}
		}
	}
	return part{b.takeOff(i, off, end-off, class), off, end}
}

// find returns the flight that has byte off, or the place where one would go. The caller holds b.mu.
func (b *Blob) find(off int64) (i int, found bool) {
	return slices.BinarySearchFunc(b.flights, off, func(f *flight, off int64) int {
		switch {
		case f.off+f.n <= off:
			return -1
		case f.off > off:
			return 1
		}
		return 0
	})
}

// takeOff puts a flight of n bytes from off on under way, at place i, for one reader. The caller holds b.mu. Its
// goroutine ends with it, and the client waits for that.
func (b *Blob) takeOff(i int, off, n int64, class priority.Class) *flight {
	f := &flight{blob: b, off: off, n: n, class: class, refs: 1, need: math.MaxInt64, change: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(b.client.ctx)
	b.flights = slices.Insert(b.flights, i, f)
	if !b.client.start(f.run) {
		f.finish(ErrClosed)
	}
	return f
}

// join makes one more reader wait for f.
func (b *Blob) join(f *flight, class priority.Class) {
	f.refs++
	b.count.addJoined()
	if class < f.class && !f.over {
		f.class = class
		if f.ticket != nil {
			b.scheduler().raise(f.ticket, class)
		}
	}
}

// extend widens a flight that still waits for its turn to [off, end) and joins it, if that is no longer than a range may be.
func (b *Blob) extend(f *flight, off, end int64, class priority.Class) bool {
	if f.started || f.over || f.class != class || end-off > rangeSize {
		return false
	}
	f.off, f.n = off, end-off
	f.refs++
	b.count.addJoined()
	return true
}

// release says that one reader wants no more of p's flight, if it has one. A flight nobody wants is stopped, and
// forgotten.
func (b *Blob) release(p part) {
	f := p.flight
	if f == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	f.refs--
	if p.off == f.off+f.n { // read to its end
		b.client.unkeep(f)
	}
	if f.refs == 0 && f.kept == 0 {
		b.forget(f)
	}
}

// forget stops f and takes it off the list. The caller holds b.mu.
func (b *Blob) forget(f *flight) {
	f.cancel()
	b.client.unkeep(f)
	if i := slices.Index(b.flights, f); i >= 0 {
		b.flights = slices.Delete(b.flights, i, i+1)
	}
	f.recycle()
}

// buffer returns n bytes, used ones if there are any: at a gigabit per second the collector would otherwise be behind.
func (c *Client) buffer(n int64) []byte {
	if n <= rangeSize/2 {
		return make([]byte, n)
	}
	if p, ok := c.spare.Get().(*[rangeSize]byte); ok {
		return p[:n]
	}
	return new([rangeSize]byte)[:n]
}

// recycle gives f's buffer back once nobody writes or reads it any more. The caller holds Blob.mu.
func (f *flight) recycle() {
	if !f.over || f.refs > 0 || f.kept > 0 {
		return
	}
	if cap(f.buf) == rangeSize {
		f.blob.client.spare.Put((*[rangeSize]byte)(f.buf[:rangeSize]))
	}
	f.buf, f.got = nil, 0
}

// read copies bytes from offset off of the blob, up to end, waiting until there are some.
func (f *flight) read(ctx context.Context, p []byte, off, end int64) (int, error) {
	b := f.blob
	for {
		b.mu.Lock()
		if have := f.off + f.got; have > off {
			n := copy(p, f.buf[off-f.off:min(have, end)-f.off])
			b.mu.Unlock()
			return n, nil
		}
		if f.over {
			defer b.mu.Unlock()
			if f.err == nil {
				return 0, errStale
			}
			return 0, f.err
		}
		// Waking a reader for every packet would cost more than it gains: it waits for all it wants, in pieces of 64 KiB.
		f.need = min(f.need, off-f.off+min(int64(len(p)), 64<<10))
		change := f.change
		b.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// advance notes that n more bytes have arrived in buf.
func (f *flight) advance(n int) {
	f.blob.mu.Lock()
	defer f.blob.mu.Unlock()
	f.got += int64(n)
	if f.ticket != nil {
		f.blob.scheduler().arrived(f.ticket, int64(n))
	}
	if f.got >= f.need {
		f.wake()
	}
}

// scheduler is that of the blob's own registry. There are sources.
func (b *Blob) scheduler() *scheduler { return b.up.sources[len(b.up.sources)-1].host.sched }

func (f *flight) wake() {
	close(f.change)
	f.change, f.need = make(chan struct{}), math.MaxInt64
}

// finish says that no more will come. One that failed, or that nobody wants, is forgotten. The caller holds Blob.mu.
func (f *flight) finish(err error) {
	f.err, f.over = err, true
	if err != nil || f.refs == 0 && f.kept == 0 {
		f.blob.forget(f)
	}
	f.wake()
	f.cancel()
}

// run fetches the range, trying again until all of it is there, nobody wants it, or the stall deadline has passed.
func (f *flight) run() {
	err := f.fetch()
	if f.ctx.Err() != nil && err != nil {
		if err = errStale; f.blob.client.ctx.Err() != nil {
			err = ErrClosed
		}
	}
	f.blob.mu.Lock()
	defer f.blob.mu.Unlock()
	f.finish(err)
}

func (f *flight) fetch() error {
	return f.blob.client.persist(f.ctx, f.blob.up, &f.blob.count, f.arrived, f.turn)
}

func (f *flight) arrived() int64 {
	f.blob.mu.Lock()
	defer f.blob.mu.Unlock()
	return f.got
}

// turn waits for its host's scheduler and asks the sources, in order, for what is still missing. With an error goes how
// long the source wants to be left alone.
func (f *flight) turn() (wait time.Duration, err error) {
	b := f.blob
	sched := b.scheduler()
	b.mu.Lock()
	came := b.client.now()
	t := sched.enter(f.class, f.n-f.got)
	f.ticket = t
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		f.ticket = nil
		b.mu.Unlock()
		sched.leave(t)
	}()
	select {
	case <-t.ready:
	case <-f.ctx.Done():
		return 0, f.ctx.Err()
	}
	b.mu.Lock()
	f.started = true
	if f.buf == nil {
		f.buf = b.client.buffer(f.n)
	}
	off, n, class := f.off+f.got, f.n-f.got, f.class
	b.mu.Unlock()
	if granted := b.client.options.Granted; granted != nil {
		granted(b.digest, off, n, class, b.client.now().Sub(came))
	}

	asked := false
	for _, s := range b.up.order() {
		if pause := s.host.breaker.pass(b.client.now()); pause > 0 {
			if wait == 0 || pause < wait {
				wait = pause
			}
			continue
		}
		asked = true
		err = f.ask(s)
		if f.ctx.Err() != nil {
			return 0, f.ctx.Err()
		}
		if errors.Is(err, errNoRange) {
			b.up.report(s, nil)
			return 0, err
		}
		b.up.report(s, err)
		if err == nil {
			return 0, nil
		}
		var status *statusError
		if errors.As(err, &status) {
			wait = max(wait, status.retryAfter)
		}
	}
	if !asked {
		return wait, errResting
	}
	return wait, err
}

// errResting is what a turn ends with when every source's breaker is open.
var errResting = errors.New("the registry has only failed lately and is left alone for a moment")
