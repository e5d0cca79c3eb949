package virtiofs

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A run is what serves a queue from its start to its stop: workers that take turns at the ring. One of them, the leader,
// waits for requests; when it has taken one it hands the lead to another and carries the request out itself. So a
// request passes through no other goroutine, and one that waits for the network holds up no other.
type run struct {
	queue *queue
	kick  *os.File

	stopping chan struct{} // closed: no more requests are taken
	aborted  chan struct{} // closed: requests in progress are given up
	done     chan struct{} // closed: all workers have ended
	wg       sync.WaitGroup
	haltedAt time.Time // when stopping was closed; of the goroutine that reads the messages

	mu      sync.Mutex
	workers []*worker // all of them
	idle    []*worker // a stack, so that the same few are used when few are enough
	vacant  bool      // nobody leads: the next worker to finish its request does
}

// A worker carries out one request at a time.
type worker struct {
	chain chain
	bad   error   // why the chain cannot be read
	mem   *memory // by which the chain was read; a reference is ours
	wake  chan struct{}

	fuseBuffers

	mu     sync.Mutex
	ps     *fuse.ProtocolServer // what carries out the request, nil when there is none
	unique uint64               // by which the request can be interrupted
}

// startRun starts a run with one worker; more are started when they are needed.
func startRun(q *queue, kick *os.File) *run {
	r := &run{
		queue:    q,
		kick:     kick,
		stopping: make(chan struct{}),
		aborted:  make(chan struct{}),
		done:     make(chan struct{}),
	}
	q.server.spare.Add(-1)
	r.add()
	go func() {
		defer close(r.done)
		r.wg.Wait()
		q.server.spare.Add(int64(len(r.workers)))
	}()
	return r
}

// add starts a worker that leads. It is called before anything else uses r, or with r.mu held by a worker.
func (r *run) add() {
	w := &worker{wake: make(chan struct{}, 1)}
	r.workers = append(r.workers, w)
	r.wg.Add(1)
	go r.work(w)
}

// work is the life of a worker.
func (r *run) work(w *worker) {
	defer r.wg.Done()
	// A fault on guest memory that the host cannot provide becomes a panic, and the panic the end of this queue's service
	// instead of the end of the process. The file system's own panics do not get here.
	debug.SetPanicOnFault(true)
	defer func() {
		if p := recover(); p != nil {
			r.queue.server.fault(fmt.Errorf("queue %d is dead: panic: %v", r.queue.index, p))
			if w.mem != nil {
				w.mem.release()
			}
		}
	}()
	for r.lead(w) {
		r.handOver()
		n, done := r.queue.server.serve(r, w)
		r.queue.complete(w, n, done)
		if !r.rejoin(w) {
			return
		}
	}
}

// lead waits until there is a request and takes it into w. It returns false when the run is stopping.
func (r *run) lead(w *worker) bool {
	for !r.halted() {
		ok, err := r.queue.take(w)
		if err != nil {
			r.queue.server.fault(fmt.Errorf("queue %d: %w", r.queue.index, err))
			<-r.stopping
			return false
		}
		if ok {
			return true
		}
		var count [8]byte
		if _, err := r.kick.Read(count[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			r.queue.server.fault(fmt.Errorf("queue %d: kick descriptor: %w", r.queue.index, err))
			<-r.stopping
			return false
		}
	}
	return false
}

// handOver gives the lead to another worker: an idle one, or a new one if there may be more.
func (r *run) handOver() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.idle); n > 0 {
		w := r.idle[n-1]
		r.idle = r.idle[:n-1]
		w.wake <- struct{}{}
		return
	}
	if r.queue.index > 0 && !r.halted() && r.queue.server.takeSpare() {
		r.add()
		return
	}
	// The high-priority queue has one worker: what comes there is done at once, and never waits for other requests.
	r.vacant = true
}

// rejoin waits until w is to lead again. It returns false when the run is stopping.
func (r *run) rejoin(w *worker) bool {
	r.mu.Lock()
	if r.vacant {
		r.vacant = false
		r.mu.Unlock()
		return true
	}
	r.idle = append(r.idle, w)
	r.mu.Unlock()
	select {
	case <-w.wake:
		return true
	case <-r.stopping:
		return false
	}
}

// halted says that no more requests are taken.
func (r *run) halted() bool {
	select {
	case <-r.stopping:
		return true
	default:
		return false
	}
}

// poke makes the leader look at the ring.
func (r *run) poke() {
	r.kick.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// halt makes the workers end after the requests they have. It does not wait.
func (r *run) halt() {
	if !r.halted() {
		close(r.stopping)
		r.haltedAt = time.Now()
		r.kick.SetReadDeadline(time.Unix(1, 0))
	}
}

// wait waits for the workers to end after halt. Requests that have not ended when grace is over are interrupted.
func (r *run) wait(grace time.Duration) {
	timer := time.NewTimer(time.Until(r.haltedAt.Add(grace)))
	defer timer.Stop()
	select {
	case <-r.done:
		return
	case <-timer.C:
	}
	close(r.aborted)
	// A request may be interrupted only once it has begun, so those that had not are tried again.
	sweep := time.NewTicker(2 * time.Millisecond)
	defer sweep.Stop()
	for {
		r.mu.Lock()
		workers := r.workers
		r.mu.Unlock()
		for _, w := range workers {
			w.interrupt()
		}
		select {
		case <-r.done:
			return
		case <-sweep.C:
		}
	}
}

// aborting says that requests in progress are being given up.
func (r *run) aborting() bool {
	select {
	case <-r.aborted:
		return true
	default:
		return false
	}
}
