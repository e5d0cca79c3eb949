package chunkcache

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Verified is what Verify found.
type Verified struct {
	Chunks int64 // that are right
	Bytes  int64 // of them
	Wrong  int64 // chunks that were dropped: they are fetched again when they are needed
}

// Verify compares every chunk with its sha256, on all cores, and drops those that are wrong. The cache can be used
// meanwhile. Where ctx ends it answers what it has found until then, and ctx's error.
func (c *Cache) Verify(ctx context.Context) (Verified, error) {
	var chunks, size, wrong atomic.Int64
	err := c.commits.flush()
	if err == nil {
		var work errgroup.Group
		work.SetLimit(runtime.GOMAXPROCS(0))
		err = c.each(ctx, func(k Key, _ record) error {
			e, err := c.find(&k)
			if err != nil || e == nil {
				return err
			}
			work.Go(func() error {
				switch ok := c.recheck(k, e); {
				case ok:
					chunks.Add(1)
					size.Add(e.size)
				case c.discard(k, e): // else it was deleted meanwhile
					wrong.Add(1)
				}
				return nil
			})
			return nil
		})
		_ = work.Wait()
	}
	if err != nil {
		err = fmt.Errorf("verify chunk cache: %w", err)
	}
	return Verified{chunks.Load(), size.Load(), wrong.Load()}, err
}

// recheck compares all of e with its key, whatever was found before.
func (c *Cache) recheck(k Key, e *entry) bool {
	e.checking.Lock()
	defer e.checking.Unlock()
	return c.settle(k, e)
}
