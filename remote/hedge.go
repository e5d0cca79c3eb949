package remote

import (
	"context"
	"net/http"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// answer is how one request for a range went.
type answer struct {
	resp   *http.Response
	source *source
	err    error
	number int // 0 is the first request, 1 the hedge
}

// request asks s for n bytes from off on. If somebody waits for them, and the answer takes far longer than this host's
// do, a second request goes out, to another source if there is one, and the first good answer counts. ctx ends when the
// body has been read.
func (f *flight) request(ctx context.Context, s *source, class priority.Class, off, n int64) answer {
	late := lateAfter(s, class)
	if late == 0 {
		return f.send(ctx, s, class, off, n)
	}
	answers := make(chan answer, 2) // room for both: nobody waits for the one that lost
	var cancels []context.CancelFunc
	launch := func(s *source) {
		ctx, cancel := context.WithCancel(ctx)
		number := len(cancels)
		cancels = append(cancels, cancel)
		started := f.blob.client.start(func() {
			a := f.send(ctx, s, class, off, n)
			a.number = number
			answers <- a
		})
		if !started {
			answers <- answer{source: s, err: ErrClosed, number: number}
		}
	}
	launch(s)
	timer := time.NewTimer(late)
	defer timer.Stop()
	for pending := 1; ; {
		select {
		case a := <-answers:
			if pending--; a.err != nil && pending > 0 {
				continue
			}
			// Cancelling a request also closes the connection of an answer that nobody reads.
			for i, cancel := range cancels {
				if i != a.number {
					cancel()
				}
			}
			return a
		case <-timer.C:
			if s.host.link.mayHedge() {
				launch(f.blob.up.other(s))
				pending++
				f.blob.count.addHedge()
			}
		}
	}
}

// send is one request.
func (f *flight) send(ctx context.Context, s *source, class priority.Class, off, n int64) answer {
	begin := f.blob.client.now()
	resp, err := f.blob.request(ctx, s, off, n, class)
	if err == nil {
		s.host.link.firstByte(f.blob.client.now().Sub(begin), class == priority.OnDemand)
	}
	return answer{resp: resp, source: s, err: err}
}

// lateAfter is when an answer is so late that asking again is worth it; 0 means never.
func lateAfter(s *source, class priority.Class) time.Duration {
	if class != priority.OnDemand {
		return 0
	}
	p95 := s.host.link.p95()
	if p95 == 0 {
		return 0
	}
	return max(3*p95, p95+50*time.Millisecond)
}

// other is a source besides s to ask, or s itself when it is the only one.
func (u *upstream) other(s *source) *source {
	for _, o := range u.order() {
		if o != s {
			return o
		}
	}
	return s
}
