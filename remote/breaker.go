package remote

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	breakerThreshold = 5               // failures in a row that open it
	breakerFirst     = time.Second / 2 // how long it first stays open
	breakerLongest   = 5 * time.Second // and at most, so that reads work again soon after the host does
)

// breaker keeps everybody but one from a host that only fails. The zero value is closed.
type breaker struct {
	mu    sync.Mutex
	fails int       // in a row
	until time.Time // nobody passes before; zero = everybody passes
}

// pass says how long to wait before asking the host; at 0 the caller may ask, and reports how it went. After a pause one
// caller passes to see whether the host is well again, and the others wait for what it finds.
func (b *breaker) pass(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.until.IsZero() {
		return 0
	}
	if wait := b.until.Sub(now); wait > 0 {
		return wait
	}
	b.until = now.Add(breakerFirst)
	return 0
}

func (b *breaker) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails, b.until = 0, time.Time{}
}

// failed notes a failure; the pause it may lead to is never longer than a fraction of stall, the time after which a read
// gives up (0 = never).
func (b *breaker) failed(now time.Time, stall time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails++
	if over := b.fails - breakerThreshold; over >= 0 {
		d := min(breakerFirst<<min(over, 10), breakerLongest)
		if stall > 0 {
			d = min(d, max(stall/8, 2))
		}
		b.until = now.Add(d/2 + rand.N(d/2))
	}
}
