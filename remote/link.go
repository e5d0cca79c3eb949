package remote

import (
	"slices"
	"sync"
	"time"
)

const (
	minBudget = 4 << 20 // bytes in flight where nothing is known of the link yet
	// knownBudget is the least where something is: one range arrives while the next is asked for.
	knownBudget = 2 << 20
	maxBudget   = 32 << 20 // and at most, however long and fat it is
)

// link is what has been seen of the way to a host: its round trip, how long answers take, and its bandwidth. The zero
// value knows nothing.
type link struct {
	mu      sync.Mutex
	rtt     time.Duration     // least time from request to first byte seen
	recent  [64]time.Duration // the last times to first byte of on-demand ranges, a ring
	n       int               // how many were ever put in recent
	hedges  int               // hedges sent
	rate    float64           // bytes per second, the most seen lately; decays
	window  time.Time         // start of the current measuring window
	arrived int64             // bytes in it
	burst   float64           // bytes per second within one range's body, the most seen lately; decays
}

const measureWindow = 100 * time.Millisecond

// firstByte notes that an answer took d to begin.
func (l *link) firstByte(d time.Duration, onDemand bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rtt == 0 || d < l.rtt {
		l.rtt = d
	}
	if onDemand {
		l.recent[l.n%len(l.recent)] = d
		l.n++
	}
}

// bytes notes that n bytes arrived.
func (l *link) bytes(now time.Time, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.window.IsZero() {
		l.window = now
	}
	l.arrived += int64(n)
	if d := now.Sub(l.window); d >= measureWindow {
		if d < 10*measureWindow { // a longer one was mostly idle and says nothing
			l.rate = max(float64(l.arrived)/d.Seconds(), l.rate*0.95)
		}
		l.window, l.arrived = now, 0
	}
}

// leastBurst is how long a body has to be to say something of the bandwidth, bytes.
const leastBurst = 256 << 10

// body notes that n bytes arrived within d, as one body.
func (l *link) body(n int64, d time.Duration) {
	if n < leastBurst || d <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.burst = max(float64(n)/d.Seconds(), l.burst*0.95)
}

// capacity is the bandwidth as far as it has been seen, bytes per second; 0 while it is not known. A link that is mostly waited
// for shows what it can only while something arrives.
func (l *link) capacity() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.rate, l.burst)
}

// budget is how many bytes in flight keep the link busy: twice the bandwidth-delay product, within bounds.
func (l *link) budget() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inFlight(minBudget)
}

// lowBudget is budget for what nobody waits for: less where something is known of the link, since what is wanted now shares it with
// all that is in flight.
func (l *link) lowBudget() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return minBudget
	}
	return l.inFlight(knownBudget)
}

// inFlight is budget, at least so much. mu is held.
func (l *link) inFlight(least int64) int64 {
	return min(max(int64(2*l.rate*l.rtt.Seconds()), least), maxBudget)
}

// p95 is the 95th percentile of on-demand times to first byte; 0 while too few have been seen to tell.
func (l *link) p95() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(l.n, len(l.recent))
	if n < 20 {
		return 0
	}
	sorted := slices.Clone(l.recent[:n])
	slices.Sort(sorted)
	return sorted[n*95/100]
}

// hedgeShare is how many requests there have to be for each hedge: a host that is slow as a whole is not to be asked
// twice for everything.
const hedgeShare = 20

// mayHedge says whether one more second request is within bounds, and counts it.
func (l *link) mayHedge() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hedges*hedgeShare > l.n {
		return false
	}
	l.hedges++
	return true
}
