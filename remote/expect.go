package remote

import (
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// Latency is the least time that the blob's registry has been seen to take for the first byte of an answer; 0 while nothing is known.
func (b *Blob) Latency() time.Duration {
	l := b.link()
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rtt
}

// Bandwidth is how many bytes per second have been seen to come from the blob's registry at best, lately; 0 while nothing is known.
func (b *Blob) Bandwidth() float64 {
	if l := b.link(); l != nil {
		return l.capacity()
	}
	return 0
}

// link is that of the blob's own registry; nil where there is none.
func (b *Blob) link() *link {
	if b.connect() != nil {
		return nil
	}
	return &b.up.sources[len(b.up.sources)-1].host.link
}

// Expect says that bytes [off, off+n) will be read before long: as predicted ranges they are asked for now, and kept in memory
// until they have been read. It does not wait. It answers false, and leaves out the rest, when there is no more room for what is read
// ahead; what it cannot get is the reader's to find out.
func (b *Blob) Expect(off, n int64) bool {
	end := min(off+n, b.size)
	if off < 0 || n < 0 || off >= end || b.connect() != nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for at := off; at < end && b.spool == nil; {
		i, found := b.find(at)
		if found {
			at = b.flights[i].off + b.flights[i].n
			continue
		}
		n := min(end-at, rangeSize)
		if i < len(b.flights) {
			n = min(n, b.flights[i].off-at)
		}
		if !b.client.roomAhead(n) {
			return false
		}
		b.client.keepAhead(b.takeOff(i, at, n, priority.Predicted))
		at += n
	}
	return true
}

// DropAhead gives up what has been read ahead and nobody reads.
func (b *Blob) DropAhead() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(b.flights) - 1; i >= 0; i-- {
		f := b.flights[i]
		b.client.unkeep(f)
		if f.refs == 0 {
			b.forget(f)
		}
	}
}

// roomAhead says whether n more bytes may be kept for those who will read them. The caller may hold Blob.mu.
func (c *Client) roomAhead(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keptBytes+n <= c.options.BufferBytes/2
}
