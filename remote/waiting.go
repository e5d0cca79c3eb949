package remote

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Wait is a registry of which something has been asked and from which nothing comes.
type Wait struct {
	Host   string        // as people write it
	Silent time.Duration // since the last byte, or since it was asked
	Last   error         // how the last attempt failed; nil when none has yet
}

// Waiting lists the registries that have been silent for at least d though somebody waits for them, the longest first.
func (c *Client) Waiting(d time.Duration) []Wait {
	c.mu.Lock()
	all := make([]*upstream, 0, len(c.upstreams))
	for _, u := range c.upstreams {
		all = append(all, u)
	}
	c.mu.Unlock()
	now := c.now()
	var waits []Wait
	for _, u := range all {
		silent, last, pending := u.waits.look(now)
		if !pending {
			continue
		}
		w := Wait{Host: displayHost(u.sources[len(u.sources)-1].host.name), Silent: silent, Last: last}
		i := slices.IndexFunc(waits, func(o Wait) bool { return o.Host == w.Host })
		switch {
		case i < 0:
			waits = append(waits, w)
		case waits[i].Silent > w.Silent: // one repository may be waiting for another's turn
			waits[i] = w
		}
	}
	waits = slices.DeleteFunc(waits, func(w Wait) bool { return w.Silent < d })
	slices.SortFunc(waits, func(a, b Wait) int {
		if a.Silent != b.Silent {
			return int(b.Silent - a.Silent)
		}
		return strings.Compare(a.Host, b.Host)
	})
	return waits
}

// waits knows whether somebody waits for a repository, and how long nothing has come. The zero value is ready.
type waits struct {
	last atomic.Int64 // Unix nanoseconds of the last byte

	mu      sync.Mutex // guards what follows
	pending int
	since   time.Time // when the first of those pending began to wait
	trouble error     // how the last attempt failed; nil after a good one
}

// begin notes that somebody waits, until end.
func (w *waits) begin(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending++; w.pending == 1 {
		w.since, w.trouble = now, nil
	}
}

func (w *waits) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending--
}

// progress notes that bytes have come.
func (w *waits) progress(now time.Time) { w.last.Store(now.UnixNano()) }

// tried notes how an attempt went.
func (w *waits) tried(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble = err
}

func (w *waits) look(now time.Time) (silent time.Duration, last error, pending bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return min(now.Sub(w.since), now.Sub(time.Unix(0, w.last.Load()))), w.trouble, w.pending > 0
}
