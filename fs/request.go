package fs

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"sync"
	"time"
)

// request is the context of one request of a kernel. The kernel sends INTERRUPT for any signal the caller gets, and a
// reply of EINTR then goes to the program, which no local file system ever does: readers of a shell script, of a Go
// program with its preemption signals, would see files fail. So a request ends early only for a caller that is being
// killed; what cannot be known of a guest's processes, after some patience.
//
// It is reused where nobody asked for Done, so that a request that waits for nothing allocates nothing.
type request struct {
	cancel <-chan struct{} // closed by go-fuse on INTERRUPT, and when the connection is cut
	pid    uint32          // the calling thread, 0 when it is not one of this host
	cut    func() bool     // see requests
	pool   *sync.Pool

	mu      sync.Mutex
	done    chan struct{} // made by Done, closed when the request has ended, early or not
	stop    chan struct{} // made with done, closed by end
	stopped chan struct{} // closed when watch has returned
	ended   bool
}

var _ context.Context = (*request)(nil)

const (
	// patience is how long a request goes on after an INTERRUPT that may have been a fatal one.
	patience = 5 * time.Second
	// killPoll is how often a caller that got a signal is looked at: the kernel tells of its first signal only.
	killPoll = 50 * time.Millisecond
)

// begin returns the context of a request.
func (r *requests) begin(cancel <-chan struct{}, pid uint32) *request {
	q := r.pool.Get().(*request)
	q.cancel, q.pool = cancel, &r.pool
	q.pid, q.cut = 0, r.cut
	if r.cut != nil {
		q.pid = pid
	}
	return q
}

// requests makes a server's requests.
type requests struct {
	pool sync.Pool // of *request
	// cut tells whether this host's own kernel, which sends the requests, has given up waiting for answers. It is nil for
	// a guest's, and immutable once requests come.
	cut func() bool
}

// end ends a request. Nobody may use it afterwards but for what it was asked for Done.
func (q *request) end() {
	q.mu.Lock()
	asked := q.done != nil
	if asked && !q.ended {
		q.ended = true
		close(q.done)
	}
	q.mu.Unlock()
	if !asked {
		q.cancel = nil
		q.pool.Put(q)
		return
	}
	close(q.stop)
	<-q.stopped // q.cancel is go-fuse's again
}

// Done is closed when the caller is being killed or the request has ended.
func (q *request) Done() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.done == nil {
		q.done, q.stop, q.stopped = make(chan struct{}), make(chan struct{}), make(chan struct{})
		go q.watch()
	}
	return q.done
}

// watch waits for the signal that kills the caller.
func (q *request) watch() {
	defer close(q.stopped)
	select {
	case <-q.cancel:
	case <-q.stop:
		return
	}
	tick := time.NewTicker(killPoll)
	defer tick.Stop()
	for since := time.Now(); ; {
		killed, known := beingKilled(q.pid)
		if killed || q.cut != nil && q.cut() || !known && time.Since(since) > patience {
			break
		}
		select {
		case <-q.stop:
			return
		case <-tick.C:
		}
	}
	q.mu.Lock()
	if !q.ended {
		q.ended = true
		close(q.done)
	}
	q.mu.Unlock()
}

// Err is context.Canceled once Done is closed.
func (q *request) Err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return context.Canceled
	}
	return nil
}

func (q *request) Deadline() (time.Time, bool) { return time.Time{}, false }
func (q *request) Value(any) any               { return nil }

// beingKilled reports whether a thread has SIGKILL pending, which the kernel makes of every signal that is going to be
// fatal (kernel/signal.c, complete_signal), and whether that can be known.
func beingKilled(pid uint32) (killed, known bool) {
	if pid == 0 {
		return false, false
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/status")
	if err != nil {
		return os.IsNotExist(err), os.IsNotExist(err)
	}
	for line := range bytes.Lines(b) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch string(name) {
		case "SigPnd", "ShdPnd":
			set, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
			if err == nil && set&(1<<8) != 0 {
				return true, true
			}
		}
	}
	return false, true
}
