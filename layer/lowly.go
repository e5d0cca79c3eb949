package layer

import (
	"context"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// lowlyNice is how nice (nice(2)) background work is to whatever else runs on the machine: what has been started in an image goes first.
// It is not the most there is: a thread that hardly ever runs would hold up the garbage collector, which waits for all.
const lowlyNice = 10

// lowly makes the rest of the goroutine that calls it yield to whatever else wants a processor, if ctx is of the background class:
// inflating and hashing an image takes seconds. Its thread ends with it.
func lowly(ctx context.Context) {
	if priority.From(ctx) != priority.Background {
		return
	}
	runtime.LockOSThread()
	// On Linux a thread's own number names just that thread (setpriority(2), "C library/kernel differences").
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), lowlyNice)
}
