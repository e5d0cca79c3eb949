package fs

import (
	"context"
	"sync"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// prefetchJobs is how many replays of what has just been predicted are under way at a time.
const prefetchJobs = 6

// Prefetch is Predict followed by Replay, at the same time: each file is on its way as soon as it is known that it is needed, so that
// libraries whose names are in others come side by side. It returns when all is here or ctx ends.
func (t *Tree) Prefetch(ctx context.Context, argv, env []string) error {
	if len(argv) == 0 {
		return nil
	}
	q := &prefetcher{}
	q.changed = sync.NewCond(&q.mu)
	var jobs sync.WaitGroup
	for range prefetchJobs {
		jobs.Go(func() {
			for todo := q.next(); todo != nil; todo = q.next() {
				_ = t.Replay(ctx, todo) // demand decides what is an error
			}
		})
	}
	p := &predictor{t: t, ctx: priority.With(ctx, priority.Predicted), seen: make(map[ID]bool), found: q.add}
	p.program(argv[0], argv, env, 0)
	q.end()
	jobs.Wait()
	return ctx.Err()
}

// prefetcher hands what has been predicted to who brings it: all that there is by then, so that neighbours go together.
type prefetcher struct {
	mu      sync.Mutex
	changed *sync.Cond
	pending []Touch // guarded by mu
	ended   bool    // guarded by mu
}

func (q *prefetcher) add(touches []Touch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pending = append(q.pending, touches...)
	q.changed.Signal()
}

func (q *prefetcher) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.changed.Broadcast()
}

// next waits for something to bring; nil is the end.
func (q *prefetcher) next() []Touch {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.pending) == 0 && !q.ended {
		q.changed.Wait()
	}
	todo := q.pending
	q.pending = nil
	return todo
}
