package daemon

import (
	"context"
	"slices"
	"sync"
)

// tasks are the daemon's own goroutines: it does not exit before they have ended, and is not idle while there are any.
type tasks struct {
	ctx context.Context // that of every task; done when the daemon stops
	wg  sync.WaitGroup

	mu    sync.Mutex
	names []string
}

// run runs fn in a goroutine.
func (t *tasks) run(name string, fn func(context.Context)) {
	t.mu.Lock()
	t.names = append(t.names, name)
	t.mu.Unlock()
	t.wg.Go(func() {
		defer func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			i := slices.Index(t.names, name)
			t.names = slices.Delete(t.names, i, i+1)
		}()
		fn(t.ctx)
	})
}

// list returns the names of those that run.
func (t *tasks) list() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.names)
}
