package daemon

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// tasks are the daemon's own goroutines: it waits for them before it exits, and is not idle while there are any.
type tasks struct {
	ctx context.Context // that of every task; done when the daemon stops
	log *slog.Logger

	mu    sync.Mutex
	names []string
	ended chan struct{} // closed when the last one ends, if somebody waits
}

// run runs fn in a goroutine. A panic of fn ends that task only.
func (t *tasks) run(name string, fn func(context.Context)) {
	t.mu.Lock()
	t.names = append(t.names, name)
	t.mu.Unlock()
	go func() {
		defer t.end(name)
		err := recovered(t.log, func() error {
			fn(t.ctx)
			return nil
		})
		if err != nil {
			t.log.Error("task ended", "task", name, "err", err)
		}
	}()
}

func (t *tasks) end(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.names, name)
	t.names = slices.Delete(t.names, i, i+1)
	if len(t.names) == 0 && t.ended != nil {
		close(t.ended)
		t.ended = nil
	}
}

// wait waits until there are no tasks, at most for patience, and returns the names of those that still run.
func (t *tasks) wait(patience time.Duration) []string {
	t.mu.Lock()
	ended := make(chan struct{})
	if len(t.names) == 0 {
		close(ended)
	} else {
		t.ended = ended
	}
	t.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(patience):
	}
	return t.list()
}

// list returns the names of those that run.
func (t *tasks) list() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.names)
}
