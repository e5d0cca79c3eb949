package remote

import (
	"sync/atomic"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// Classes is how many priority classes there are.
const classes = int(priority.Background) + 1

// Stats counts what went over the network. Bytes are payload, without headers; they count what arrived, wanted or not.
type Stats struct {
	Bytes         int64          `json:"bytes"`
	Requests      int64          `json:"requests"`       // redirects and tokens are requests too
	ClassBytes    [classes]int64 `json:"class_bytes"`    // of Bytes, by priority.Class
	ClassRequests [classes]int64 `json:"class_requests"` // of Requests, by priority.Class
	Retries       int64          `json:"retries"`        // attempts after a first one
	Hedges        int64          `json:"hedges"`         // second requests sent because the first was late
	Joined        int64          `json:"joined"`         // reads served wholly or partly by a range that was under way already
}

// Add returns the sum of s and o.
func (s Stats) Add(o Stats) Stats {
	s.Bytes += o.Bytes
	s.Requests += o.Requests
	s.Retries += o.Retries
	s.Hedges += o.Hedges
	s.Joined += o.Joined
	for i := range classes {
		s.ClassBytes[i] += o.ClassBytes[i]
		s.ClassRequests[i] += o.ClassRequests[i]
	}
	return s
}

// counter is Stats as it is counted. It counts for parent too. The zero value is ready.
type counter struct {
	bytes, requests         [classes]atomic.Int64
	retries, hedges, joined atomic.Int64
	parent                  *counter // may be nil; immutable
}

func (c *counter) addBytes(class priority.Class, n int) {
	for ; c != nil; c = c.parent {
		c.bytes[class].Add(int64(n))
	}
}

func (c *counter) addRequest(class priority.Class) {
	for ; c != nil; c = c.parent {
		c.requests[class].Add(1)
	}
}

func (c *counter) addRetry() {
	for ; c != nil; c = c.parent {
		c.retries.Add(1)
	}
}

func (c *counter) addHedge() {
	for ; c != nil; c = c.parent {
		c.hedges.Add(1)
	}
}

func (c *counter) addJoined() {
	for ; c != nil; c = c.parent {
		c.joined.Add(1)
	}
}

func (c *counter) stats() Stats {
	s := Stats{Retries: c.retries.Load(), Hedges: c.hedges.Load(), Joined: c.joined.Load()}
	for i := range classes {
		s.ClassBytes[i], s.ClassRequests[i] = c.bytes[i].Load(), c.requests[i].Load()
		s.Bytes += s.ClassBytes[i]
		s.Requests += s.ClassRequests[i]
	}
	return s
}
