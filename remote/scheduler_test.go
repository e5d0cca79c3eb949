package remote

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/internal/registry"
)

func granted(t *ticket) bool {
	select {
	case <-t.ready:
		return true
	default:
		return false
	}
}

func TestSchedulerOrder(t *testing.T) {
	s := newScheduler(4, func() int64 { return 100 })
	s.calm = 0
	enter := func(c priority.Class) *ticket { return s.enter(c, 10) }
	b1, b2 := enter(priority.Background), enter(priority.Background)
	b3 := enter(priority.Background)
	if !granted(b1) || !granted(b2) || granted(b3) {
		t.Error("the background gets half of the connections")
	}
	d1, d2 := enter(priority.OnDemand), enter(priority.OnDemand)
	if !granted(d1) || !granted(d2) {
		t.Error("an on-demand range waits though connections are free")
	}
	p, d3 := enter(priority.Predicted), enter(priority.OnDemand)
	s.leave(b1)
	if !granted(d3) || granted(p) || granted(b3) {
		t.Error("the first free connection is the on-demand range's")
	}
	s.leave(b2)
	if !granted(p) || granted(b3) {
		t.Error("the next is the predicted range's")
	}
	b4 := enter(priority.Background)
	s.raise(b4, priority.OnDemand)
	s.leave(p)
	if !granted(b4) || granted(b3) {
		t.Error("a raised range goes first")
	}
	s.leave(b3) // it gives up waiting
	for _, x := range []*ticket{d1, d2, d3, b4} {
		s.leave(x)
	}
	if s.running != 0 || s.low != 0 || s.lowLeft != 0 {
		t.Errorf("left: %d running, %d low, %d bytes", s.running, s.low, s.lowLeft)
	}
}

func TestSchedulerBudget(t *testing.T) {
	s := newScheduler(20, func() int64 { return 100 })
	s.calm = 0
	big := s.enter(priority.Background, 1000)
	if !granted(big) {
		t.Error("a range over the budget waits for ever")
	}
	small := s.enter(priority.Background, 1)
	if granted(small) {
		t.Error("more bytes in flight than the budget")
	}
	if d := s.enter(priority.OnDemand, 1000); !granted(d) {
		t.Error("the budget holds up an on-demand range")
	}
	s.leave(big)
	if !granted(small) {
		t.Error("the budget is not given back")
	}
}

// Whatever comes and goes, nothing is granted over the limits, and nothing is forgotten.
func TestSchedulerRandomly(t *testing.T) {
	const conns, budget = 6, 50
	s := newScheduler(conns, func() int64 { return budget })
	s.calm = 0
	var mu sync.Mutex
	running, low, bytes := 0, 0, int64(0)
	var wg sync.WaitGroup
	for g := range 30 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(g)))
			for range 200 {
				class, n := priority.Class(r.IntN(3)), 1+r.Int64N(30)
				tk := s.enter(class, n)
				if r.IntN(4) == 0 {
					s.raise(tk, priority.OnDemand)
				}
				if r.IntN(4) == 0 {
					s.leave(tk) // perhaps it was granted, perhaps not
					continue
				}
				<-tk.ready
				mu.Lock()
				isLow := tk.low
				if running++; isLow {
					low++
					bytes += n
				}
				if running > conns || low > conns/2 || low > 1 && bytes > budget {
					t.Errorf("%d running, %d of them low with %d bytes", running, low, bytes)
				}
				mu.Unlock()
				mu.Lock()
				if running--; isLow {
					low--
					bytes -= n
				}
				mu.Unlock()
				s.leave(tk)
			}
		})
	}
	wg.Wait()
	if s.running != 0 || len(s.queue[0])+len(s.queue[1])+len(s.queue[2]) != 0 {
		t.Errorf("left: %d running, queues %v", s.running, s.queue)
	}
}

func TestBreaker(t *testing.T) {
	var b breaker
	k := newClock()
	for range breakerThreshold - 1 {
		b.failed(k.now(), 0)
	}
	if b.pass(k.now()) != 0 {
		t.Error("open too early")
	}
	b.failed(k.now(), 0)
	wait := b.pass(k.now())
	if wait <= 0 || wait > breakerFirst {
		t.Errorf("waits %v", wait)
	}
	k.add(wait)
	if b.pass(k.now()) != 0 {
		t.Error("nobody may look whether the host is well again")
	}
	if b.pass(k.now()) == 0 {
		t.Error("more than one may look")
	}
	for range 20 {
		b.failed(k.now(), 0)
	}
	if wait := b.pass(k.now()); wait > breakerLongest || wait < breakerLongest/2 {
		t.Errorf("waits %v after many failures", wait)
	}
	b.succeeded()
	if b.pass(k.now()) != 0 {
		t.Error("still open after a success")
	}
	for range 20 {
		b.failed(k.now(), time.Second)
	}
	if wait := b.pass(k.now()); wait > time.Second/4 {
		t.Errorf("waits %v of a stall deadline of 1 s", wait)
	}
}

func TestBackoff(t *testing.T) {
	for n, most := range map[int]time.Duration{1: 100 * time.Millisecond, 3: 400 * time.Millisecond, 100: 5 * time.Second} {
		seen := map[time.Duration]bool{}
		for range 100 {
			d := backoff(n)
			if d < most/2 || d > most {
				t.Errorf("backoff(%d) = %v", n, d)
			}
			seen[d] = true
		}
		if len(seen) < 10 {
			t.Errorf("backoff(%d) has no jitter", n)
		}
	}
}

func TestLink(t *testing.T) {
	var l link
	if l.budget() != minBudget || l.p95() != 0 {
		t.Error("what is known of nothing")
	}
	k := newClock()
	for range 200 { // 100 MB/s
		l.bytes(k.now(), 1_000_000)
		k.add(10 * time.Millisecond)
	}
	for range 100 {
		l.firstByte(100*time.Millisecond, true)
	}
	if b := l.budget(); b < 18_000_000 || b > 25_000_000 {
		t.Errorf("budget %d for 100 MB/s and 100 ms", b)
	}
	if p := l.p95(); p != 100*time.Millisecond {
		t.Errorf("p95 %v", p)
	}
	hedges := 0
	for range 100 {
		if l.mayHedge() {
			hedges++
		}
	}
	if hedges == 0 || hedges > 100/hedgeShare+1 {
		t.Errorf("%d hedges for 100 requests", hedges)
	}
}

// While the background has all it may have, what somebody waits for goes at once; and the background gets on too.
func TestOnDemandGoesFirst(t *testing.T) {
	checkLeaks(t)
	layers := [][]byte{randomBytes(1 << 20), randomBytes(20 << 20)[1:]}
	s, c, img := serve(t, registry.Options{}, Options{StallTimeout: time.Minute, ConnsPerHost: 4}, layers...)
	release := make(chan struct{})
	s.Inject(registry.Match{Ref: img.Layers[1].Digest}, registry.Hold(release))
	ctx, cancel := context.WithCancel(priority.With(context.Background(), priority.Background))
	defer cancel()
	pulled := make(chan error, 1)
	go func() { pulled <- pullLayer(ctx, c.Blob(img, img.Layers[1], Access{}), [32]byte{}) }()
	for len(s.Requests(registry.Blob)) < 3 { // the config, and two of the background
		time.Sleep(time.Millisecond)
	}
	p := make([]byte, 1000)
	if _, err := c.Blob(img, img.Layers[0], Access{}).ReadAt(context.Background(), p, 5); err != nil || !bytes.Equal(p, layers[0][5:1005]) {
		t.Errorf("on demand: %v", err)
	}
	cancel()
	close(release)
	if err := <-pulled; !errors.Is(err, context.Canceled) {
		t.Errorf("the background: %v", err)
	}
}

// With no stall deadline a read waits for as long as it takes.
func TestWaitForEver(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(100_000)
	s, c, img := serve(t, registry.Options{}, Options{StallTimeout: -1}, layer)
	k := newClock()
	c.now = k.now
	slept := 0
	c.sleep = func(ctx context.Context, d time.Duration) error {
		k.add(d + time.Hour)
		if slept++; slept == 50 {
			s.Up()
		}
		return ctx.Err()
	}
	s.Down()
	p := make([]byte, 1000)
	if _, err := c.Blob(img, img.Layers[0], Access{}).ReadAt(context.Background(), p, 5); err != nil || !bytes.Equal(p, layer[5:1005]) {
		t.Errorf("after %d pauses: %v", slept, err)
	}
}

func TestClosedClient(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(100_000)
	s, c, img := serve(t, registry.Options{}, Options{StallTimeout: time.Minute}, layer)
	b := c.Blob(img, img.Layers[0], Access{})
	s.Inject(registry.Match{}, registry.Hang())
	done := make(chan error, 1)
	go func() {
		_, err := b.ReadAt(context.Background(), make([]byte, 10), 0)
		done <- err
	}()
	for len(s.Requests(registry.Blob)) < 2 {
		time.Sleep(time.Millisecond)
	}
	c.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("a read under way: %v", err)
	}
	if _, err := b.ReadAt(context.Background(), make([]byte, 10), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("a later read: %v", err)
	}
	if _, err := c.Resolve(context.Background(), s.Host()+"/a/b:1", amd64); !errors.Is(err, ErrClosed) {
		t.Errorf("Resolve: %v", err)
	}
}

// The background waits until nobody has waited for anything for a while, but not for ever.
func TestSchedulerCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScheduler(20, func() int64 { return 1 << 20 })
		s.leave(s.enter(priority.Background, 1))
		demand := s.enter(priority.OnDemand, 10)
		rest, soon := s.enter(priority.Background, 10), s.enter(priority.Predicted, 10)
		if !granted(demand) || granted(rest) || !granted(soon) {
			t.Fatalf("on demand %v, background %v, predicted %v", granted(demand), granted(rest), granted(soon))
		}
		s.leave(demand)
		time.Sleep(backgroundCalm / 2)
		again := s.enter(priority.OnDemand, 10)
		s.leave(again)
		time.Sleep(backgroundCalm / 2)
		if synctest.Wait(); granted(rest) {
			t.Error("somebody has just waited")
		}
		time.Sleep(backgroundCalm)
		if synctest.Wait(); !granted(rest) {
			t.Error("it is calm")
		}
		s.leave(rest)
		demand = s.enter(priority.OnDemand, 10)
		late := s.enter(priority.Background, 10)
		time.Sleep(maxPause - backgroundCalm)
		if synctest.Wait(); granted(late) {
			t.Error("somebody waits")
		}
		time.Sleep(2 * backgroundCalm)
		if synctest.Wait(); !granted(late) {
			t.Error("the background waits for ever")
		}
		for _, x := range []*ticket{demand, late, soon} {
			s.leave(x)
		}
	})
}
