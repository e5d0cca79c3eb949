package fs

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// Closing a tree waits for what has begun, and nothing begins once it has returned.
func TestNothingBeginsAfterClose(t *testing.T) {
	for range 500 {
		tree, err := New(t.Context(), nil, nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var closed atomic.Bool
		var late atomic.Bool
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for tree.begin() {
					if closed.Load() {
						late.Store(true)
					}
					tree.work.Done()
				}
			})
		}
		runtime.Gosched()
		_ = tree.Close()
		closed.Store(true)
		readers.Wait()
		if late.Load() {
			t.Fatal("something began after Close had returned")
		}
	}
}
