package remote

import (
	"slices"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// backgroundCalm is for how long nobody must have waited for anything from a host before something is fetched from it in the background:
// who has just waited will probably wait again, and shares the link with what is under way then.
const backgroundCalm = 200 * time.Millisecond

// scheduler shares one host's connections and bytes in flight among ranges, by strict priority. On-demand ranges may
// use every connection; the others leave some free, so that an on-demand range never queues behind them, and keep
// only so many bytes in flight as the link needs to stay busy, so that it does not queue behind them in the network either.
type scheduler struct {
	conns  int          // most ranges at once; immutable
	budget func() int64 // most bytes in flight below on-demand; immutable
	// calm is for how long nobody must have waited for anything before something is fetched in the background; immutable.
	calm time.Duration

	mu      sync.Mutex
	demand  int         // of running, those on demand
	last    time.Time   // when the last of those began or ended
	since   time.Time   // when a background range was granted last
	again   *time.Timer // looks again when it is calm; nil while nobody waits for that
	running int
	low     int   // of running, those below on-demand
	lowLeft int64 // bytes those have been granted and that have not arrived
	queue   [classes][]*ticket
}

// ticket is one range's place in its host's queue.
type ticket struct {
	n     int64          // bytes of the range that have not arrived; guarded by scheduler.mu
	class priority.Class // guarded by scheduler.mu
	ready chan struct{}  // closed when granted
	held  bool           // granted and not yet released; guarded by scheduler.mu
	low   bool           // granted below on-demand; guarded by scheduler.mu

	demand bool // granted on demand; guarded by scheduler.mu
}

func newScheduler(conns int, budget func() int64) *scheduler {
	return &scheduler{conns: conns, budget: budget, calm: backgroundCalm}
}

// enter queues a range of n bytes. The caller waits for ticket.ready and ends with leave, also when it stops waiting.
func (s *scheduler) enter(class priority.Class, n int64) *ticket {
	t := &ticket{n: n, class: class, ready: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue[class] = append(s.queue[class], t)
	s.admit()
	return t
}

// leave gives back what t holds, or takes it out of the queue.
func (s *scheduler) leave(t *ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !t.held {
		s.drop(t)
	} else {
		t.held = false
		s.running--
		if t.demand {
			s.demand--
			s.last = time.Now()
		}
		if t.low {
			s.low--
			s.lowLeft -= t.n
		}
	}
	s.admit()
}

// arrived notes that n bytes of t's range have come: they are not in flight any more, so that the next range can be asked for
// before this one has ended. Ranges that began together would else end together, and leave the link idle until the
// next ones begin.
func (s *scheduler) arrived(t *ticket, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = min(n, t.n)
	t.n -= n
	if t.held && t.low {
		s.lowLeft -= n
		s.admit()
	}
}

// raise moves t, if it still waits, to a more urgent class.
func (s *scheduler) raise(t *ticket, class priority.Class) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.held || class >= t.class || !s.drop(t) {
		return
	}
	t.class = class
	s.queue[class] = append(s.queue[class], t)
	s.admit()
}

// drop takes t out of its queue; false when it is in none.
func (s *scheduler) drop(t *ticket) bool {
	q := s.queue[t.class]
	i := slices.Index(q, t)
	if i < 0 {
		return false
	}
	s.queue[t.class] = slices.Delete(q, i, i+1)
	return true
}

// admit grants what there is room for, most urgent first. It stops at the first class that has to wait.
func (s *scheduler) admit() {
	for class := range s.queue {
		for len(s.queue[class]) > 0 {
			t := s.queue[class][0]
			if !s.room(t) {
				return
			}
			s.queue[class] = slices.Delete(s.queue[class], 0, 1)
			t.held = true
			s.running++
			if t.class != priority.OnDemand {
				t.low = true
				s.low++
				s.lowLeft += t.n
			} else {
				t.demand = true
				s.demand++
				s.last = time.Now()
			}
			if t.class == priority.Background {
				s.since = time.Now()
			}
			close(t.ready)
		}
	}
}

func (s *scheduler) room(t *ticket) bool {
	switch {
	case s.running >= s.conns:
		return false
	case t.class == priority.OnDemand:
		return true
	case t.class == priority.Background && !s.isCalm():
		return false
	case s.low == 0:
		return true
	}
	return s.low < s.conns/2 && s.lowLeft+t.n <= s.budget()
}

// maxPause is how long the background is kept waiting by those who wait for something, at most, before it gets another range.
const maxPause = 2 * time.Second

// isCalm says whether nobody has waited for anything for a while. If not it sees to it that somebody looks again.
func (s *scheduler) isCalm() bool {
	if s.calm <= 0 {
		return true
	}
	now := time.Now()
	wait := s.calm
	if s.demand == 0 {
		wait -= now.Sub(s.last)
	}
	if wait = min(wait, maxPause-now.Sub(s.since)); wait <= 0 {
		return true
	}
	if s.again == nil {
		s.again = time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.again = nil
			s.admit()
		})
	}
	return false
}
