package api

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	waitingEvery = 2 * time.Second  // between two looks at what the daemon waits for
	waitingAgain = 30 * time.Second // before the same is said again
)

// watch tells c.Waiting, until stop is called, which registries keep the daemon waiting.
func (c *Client) watch(ctx context.Context) (stop func()) {
	if c.Waiting == nil {
		return func() {}
	}
	return c.Watch(ctx, c.Waiting)
}

// Watch tells fn now and then, until stop is called, which registries keep the daemon waiting. There need not be a daemon yet.
func (c *Client) Watch(ctx context.Context, fn func(Wait)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		said := map[string]time.Time{}
		tick := time.NewTicker(waitingEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			var waits []Wait
			if err := c.Call(ctx, "GET", "/v1/waiting", nil, &waits); err != nil {
				continue // the answer that is awaited will say what is wrong
			}
			for _, w := range waits {
				what := w.Host + " " + w.Error
				if time.Since(said[what]) >= waitingAgain {
					said[what] = time.Now()
					fn(w)
				}
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

// String is a line for people.
func (w Wait) String() string {
	if w.Error != "" {
		return fmt.Sprintf("still trying %s: %s", w.Host, w.Error)
	}
	return fmt.Sprintf("waiting for %s: no answer for %.0f s", w.Host, w.Seconds)
}

// watched is an answer's body that ends a watch.
type watched struct {
	io.ReadCloser
	stop func()
}

func (w watched) Close() error {
	w.stop()
	return w.ReadCloser.Close()
}
