package msb

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
)

// Timing is when a sandbox's start reached each step, and what it had cost by then.
type Timing struct {
	Events     []TimingEvent `json:"events"`         // in order of time
	ImageBytes int64         `json:"image_bytes"`    // compressed
	Layers     []api.Layer   `json:"layers"`         // with the mode each was served in
	Pool       string        `json:"pool,omitempty"` // whether the VM was one of the pool, and why not; "" where there is no pool
	Stalls     []api.Stall   `json:"stalls"`         // what the sandbox waited for, longest first
}

// TimingEvent is one step.
type TimingEvent struct {
	Name         string  `json:"name"`
	MS           float64 `json:"ms"`            // since the start was asked for
	BytesFetched int64   `json:"bytes_fetched"` // from the registry, for this image, by then
}

// Names of TimingEvents beside those of the daemon (api.EventResolved, EventIndexed, EventKernelUp).
const (
	eventVMStarted    = "vm started"
	eventAgentUp      = "agent up"
	eventStarted      = "command started"
	eventFirstOutput  = "first output"
	eventCommandEnded = "command ended"
)

// recorder notes when events happen and asks, beside them, what had been fetched. It is safe for concurrent use.
type recorder struct {
	start time.Time
	usage func(context.Context) (api.Usage, error)
	asks  sync.WaitGroup

	mu     sync.Mutex
	timing Timing
}

// mark records that name has happened now. What had been fetched is asked in a goroutine: the event must not wait for it.
func (r *recorder) mark(ctx context.Context, name string) {
	e := TimingEvent{Name: name, MS: float64(time.Since(r.start).Microseconds()) / 1000}
	r.asks.Go(func() {
		u, err := r.usage(ctx)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err == nil {
			e.BytesFetched = u.BytesFetched
		}
		r.timing.Events = append(r.timing.Events, e)
	})
}

// finish waits for all questions and returns what was recorded; last is asked for what is only known in the end.
func (r *recorder) finish(ctx context.Context) Timing {
	r.asks.Wait()
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	u, err := r.usage(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.timing.ImageBytes, r.timing.Layers, r.timing.Stalls = u.ImageBytes, u.Layers, u.Stalls
	}
	slices.SortStableFunc(r.timing.Events, func(a, b TimingEvent) int {
		switch {
		case a.MS < b.MS:
			return -1
		case a.MS > b.MS:
			return 1
		default:
			return 0
		}
	})
	return r.timing
}

// Print writes t for people to read.
func (t Timing) Print(w io.Writer) {
	for _, e := range t.Events {
		fmt.Fprintf(w, "%9.1f ms  %-16s", e.MS, e.Name)
		if t.ImageBytes > 0 {
			fmt.Fprintf(w, "%8.1f MB fetched of %.1f MB (%.1f %%)", float64(e.BytesFetched)/1e6, float64(t.ImageBytes)/1e6,
				100*float64(e.BytesFetched)/float64(t.ImageBytes))
		}
		fmt.Fprintln(w)
	}
	if t.Pool != "" {
		fmt.Fprintln(w, "in", t.Pool)
	}
	for _, l := range t.Layers {
		fmt.Fprintf(w, "layer %.19s  %s: %s\n", l.Digest, l.Mode, l.Reason)
	}
	for _, s := range t.Stalls[:min(len(t.Stalls), stallsShown)] {
		fmt.Fprintf(w, "stalled %8.1f ms in %d requests on %s\n", s.MS, s.Count, s.Path)
	}
}

// stallsShown is how many files Print names.
const stallsShown = 10

// firstWrite calls mark before the first byte passes.
type firstWrite struct {
	io.Writer
	once *sync.Once
	mark func()
}

func (f firstWrite) Write(p []byte) (int, error) {
	if len(p) > 0 {
		f.once.Do(f.mark)
	}
	return f.Writer.Write(p)
}
