package virtiofs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// drainGrace is how long requests in progress may take to end by themselves when the front end stops a queue. QEMU does
// nothing else until then, so those that wait for a network are interrupted after it.
const drainGrace = 200 * time.Millisecond

// A queue is one virtqueue: how the front end has set it up, and the run of workers that serve it while it is started.
type queue struct {
	server *server
	index  int

	// Of the goroutine that reads the messages.
	size    uint32
	addrs   *ringAddresses
	kick    *os.File // nil when the queue is stopped
	enabled bool
	placed  bool // ring has indices of its own: the queue has run since it was last stopped
	run     *run // nil when nothing serves the queue

	mu         sync.Mutex
	ring       ring
	mem        *memory
	call       int      // eventfd that interrupts the guest, or -1
	err        int      // eventfd that tells the front end of a broken ring, or -1
	unfinished []uint16 // requests that were taken and interrupted when the queue was stopped; see resume
	late       []answer // given to a ring that was nowhere; see setMemory
}

// An answer is an element of the used ring.
type answer struct {
	head uint16
	n    uint32
}

func newQueue(s *server, index int) *queue {
	return &queue{server: s, index: index, call: -1, err: -1}
}

var errRunning = errors.New("the queue is running")

func (q *queue) setSize(n uint32) error {
	if q.placed {
		return errRunning
	}
	if n == 0 || n > maxQueueSize || n&(n-1) != 0 {
		return fmt.Errorf("queue %d: %d descriptors, which is no power of two up to %d", q.index, n, maxQueueSize)
	}
	q.size = n
	return nil
}

func (q *queue) setAddresses(a ringAddresses) error {
	if q.placed {
		return errRunning
	}
	q.addrs = &a
	return nil
}

// setBase says which request is the next one to take.
func (q *queue) setBase(n uint32) error {
	if q.placed {
		return errRunning
	}
	if n > 0xffff {
		return fmt.Errorf("queue %d: index %d", q.index, n)
	}
	q.mu.Lock()
	q.resume(uint16(n))
	q.mu.Unlock()
	return nil
}

// resume keeps the unfinished requests only if the ring goes on where it was stopped. They are then taken once more: the
// guest still waits for them, and their effect was none.
func (q *queue) resume(base uint16) {
	if base != q.ring.lastAvail {
		q.unfinished = nil
	}
	q.ring.lastAvail = base
}

func (q *queue) setEventIndex(on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ring.eventIndex = on
}

// setCall takes over fd, the eventfd that interrupts the guest.
func (q *queue) setCall(fd int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	replaceFile(&q.call, fd)
	// A request may have been answered while there was no eventfd, or the guest may have been deaf to the old one.
	q.signal(q.call)
}

// setErr takes over fd, the eventfd that says that the ring is broken.
func (q *queue) setErr(fd int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	replaceFile(&q.err, fd)
}

// replaceFile puts fd, or -1, in the place of a descriptor that we write to and never wait for.
func replaceFile(old *int, fd int) {
	if fd >= 0 {
		unix.SetNonblock(fd, true)
	}
	if *old >= 0 {
		unix.Close(*old)
	}
	*old = fd
}

// signal adds one to an eventfd. It is called with q.mu held, so that the descriptor is not closed meanwhile.
func (q *queue) signal(fd int) {
	if fd >= 0 {
		unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// setKick takes over fd, the eventfd by which the guest says that there are requests, and starts the queue.
func (q *queue) setKick(fd int) error {
	if q.kick != nil {
		unix.Close(fd)
		return errRunning
	}
	if fd < 0 {
		return errors.New("a queue without a kick descriptor would have to be polled, which is not supported")
	}
	// The runtime waits for it with all others. QEMU's eventfds are not blocking anyway.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	q.kick = os.NewFile(uintptr(fd), "kick")
	return q.start()
}

// enable starts or pauses the queue. Requests in progress are answered also while it is paused.
func (q *queue) enable(on bool) error {
	q.enabled = on
	if !on {
		q.halt()
		return nil
	}
	return q.start()
}

// start begins to serve the queue if it is set up and enabled.
func (q *queue) start() error {
	if q.kick == nil || !q.enabled {
		return nil
	}
	if q.run != nil {
		if !q.run.halted() {
			return nil
		}
		q.run.wait(drainGrace)
		q.run = nil
	}
	if err := q.place(); err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	if err := q.kick.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("queue %d: kick descriptor: %w", q.index, err)
	}
	q.run = startRun(q, q.kick)
	return nil
}

// place finds the ring in the guest's memory when the queue starts.
func (q *queue) place() error {
	if q.placed {
		return nil
	}
	if q.size == 0 || q.addrs == nil {
		return errors.New("started before it was set up")
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mem == nil {
		return errors.New("started without a memory table")
	}
	if err := q.ring.place(q.mem, *q.addrs, q.size); err != nil {
		return err
	}
	q.ring.start()
	// The requests that the guest waits for are those between the two indices. That tells a queue that goes on from
	// one that a rebooted guest has set up anew at the same place.
	if q.ring.lastAvail-q.ring.usedIndex != uint16(len(q.unfinished)) {
		q.unfinished = nil
	}
	q.placed = true
	return nil
}

// setMemory makes t the memory table by which the queue is read from now on.
func (q *queue) setMemory(t *memory) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mem != nil {
		q.mem.release()
	}
	q.mem = t.acquire()
	if !q.placed {
		return
	}
	// While a front end changes the table piece by piece a ring may be nowhere for a moment. It is then left alone, and
	// requests that end meanwhile are given back afterwards.
	if q.ring.place(t, *q.addrs, q.size) != nil {
		return
	}
	for _, a := range q.late {
		if q.ring.push(a.head, a.n) {
			q.signal(q.call)
		}
	}
	q.late = nil
	if q.run != nil {
		q.run.poke()
	}
}

// take takes the next request of the ring into w. ok is false when there is none, and then the driver has been asked to
// kick when there is one.
func (q *queue) take(w *worker) (ok bool, err error) {
	table, size, ok, err := q.next(w)
	if !ok {
		return false, err
	}
	w.bad = w.chain.read(w.mem, table, w.chain.head, size)
	return true, nil
}

// next is take without the reading of the chain, for which nothing has to be locked: the reference on the memory table
// that w gets here keeps the descriptors in place.
func (q *queue) next(w *worker) (table []byte, size int, ok bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if n := len(q.unfinished); n > 0 && q.ring.size != 0 {
			w.chain.head, ok = q.unfinished[n-1], true
			q.unfinished = q.unfinished[:n-1]
		} else if w.chain.head, ok, err = q.ring.pop(); err != nil {
			q.signal(q.err)
			return nil, 0, false, err
		}
		if ok {
			break
		}
		if q.ring.arm() {
			return nil, 0, false, nil
		}
	}
	q.ring.disarm()
	w.mem = q.mem.acquire()
	return q.ring.desc, int(q.ring.size), true, nil
}

// complete gives the request of w back to the guest, with n bytes written to it. When it was not carried out it is kept
// for the case that the queue goes on.
func (q *queue) complete(w *worker, n int, done bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case !done:
		q.unfinished = append(q.unfinished, w.chain.head)
	case q.ring.size == 0:
		q.late = append(q.late, answer{w.chain.head, uint32(n)})
	case q.ring.push(w.chain.head, uint32(n)):
		q.signal(q.call)
	}
	w.mem.release()
	w.mem = nil
}

// halt takes no more requests from the queue. It does not wait.
func (q *queue) halt() {
	if q.run != nil {
		q.run.halt()
	}
}

// stop ends the queue and returns which request would have been the next to take. Requests in progress have grace to end
// before they are interrupted, counted from when the queue was halted. Nothing of the ring is touched afterwards.
func (q *queue) stop(grace time.Duration) (base uint16) {
	if q.run != nil {
		q.run.halt()
		q.run.wait(grace)
		q.run = nil
	}
	if q.kick != nil {
		q.kick.Close()
		q.kick = nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.placed = false
	q.ring.size = 0
	q.late = nil
	return q.ring.lastAvail
}

// reset forgets how the stopped queue was set up.
func (q *queue) reset() {
	q.size, q.addrs, q.enabled = 0, nil, false
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ring = ring{eventIndex: q.ring.eventIndex}
	q.unfinished = nil
	replaceFile(&q.call, -1)
	replaceFile(&q.err, -1)
}

// close releases what the stopped queue holds.
func (q *queue) close() {
	q.reset()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mem != nil {
		q.mem.release()
		q.mem = nil
	}
}
