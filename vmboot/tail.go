package vmboot

import "sync"

// tail keeps the end of what is written to it, in at most max bytes. It never blocks and never fails, so that
// what writes cannot be stalled by what reads.
type tail struct {
	mu  sync.Mutex
	max int
	buf []byte // at most 2*max long
}

func newTail(max int) *tail { return &tail{max: max} }

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-t.max):]...)
	if len(t.buf) > 2*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf[max(0, len(t.buf)-t.max):])
}
