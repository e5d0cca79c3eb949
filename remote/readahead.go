package remote

import (
	"slices"

	"github.com/microsandbox/msb-fs/internal/priority"
)

const (
	// maxAhead is the most bytes read ahead of one run of reads.
	maxAhead = 4 << 20
	// maxRuns is how many runs of reads through one blob are told apart.
	maxRuns = 8
	// minRun is how many reads in a row make a run. Two are often chance: a file's last chunk and the next file's first.
	minRun = 3
)

// run is some reads that went on one after another.
type run struct {
	next  int64 // where the next one would go on
	bytes int64 // read so far
	reads int
}

// ahead notes a read of [off, end) and, when reads have gone on one after another for a while, puts what probably
// follows under way as predicted flights: never more than has been read that way, so that at worst as much again is
// fetched in vain.
func (b *Blob) ahead(off, end int64) {
	b.mu.Lock()
	r := b.follow(off, end)
	upTo := min(end+min(r.bytes, maxAhead), b.size)
	there := b.under(end, upTo)
	b.mu.Unlock()
	// While half is there nothing is added: small steps would make small requests.
	if r.reads < minRun || there >= (upTo-end+1)/2 {
		return
	}
	b.client.dropAhead(upTo - end)

	b.mu.Lock()
	defer b.mu.Unlock()
	for at := end; at < upTo && b.spool == nil; {
		i, found := b.find(at)
		if found {
			at = b.flights[i].off + b.flights[i].n
			continue
		}
		n := min(upTo-at, rangeSize)
		if i < len(b.flights) {
			n = min(n, b.flights[i].off-at)
		}
		f := b.takeOff(i, at, n, priority.Predicted)
		b.client.keepAhead(f)
		at += n
	}
}

// follow finds the run that a read of [off, end) goes on with, or begins one in place of the one longest unused. The
// caller holds b.mu; the result is a copy.
func (b *Blob) follow(off, end int64) run {
	r := run{next: end, bytes: end - off, reads: 1}
	i := slices.IndexFunc(b.runs, func(r run) bool { return off >= r.next-joinGap && off <= r.next+joinGap && end > r.next })
	switch {
	case i >= 0:
		r.bytes, r.reads = b.runs[i].bytes+end-max(off, b.runs[i].next), b.runs[i].reads+1
		b.runs = slices.Delete(b.runs, i, i+1)
	case len(b.runs) == maxRuns:
		b.runs = slices.Delete(b.runs, 0, 1)
	}
	b.runs = append(b.runs, r)
	return r
}

// under is how many bytes of [off, end), from off on without a gap, are under way or there.
func (b *Blob) under(off, end int64) int64 {
	at := off
	for at < end {
		i, found := b.find(at)
		if !found {
			break
		}
		at = b.flights[i].off + b.flights[i].n
	}
	return min(at, end) - off
}

// keepAhead makes f last without readers, until its end is read, or it is the oldest such when there are too many. The
// caller holds Blob.mu.
func (c *Client) keepAhead(f *flight) {
	f.refs, f.kept = 0, f.n
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = append(c.kept, f)
	c.keptBytes += f.kept
}

// unkeep ends keepAhead; the caller holds Blob.mu.
func (c *Client) unkeep(f *flight) {
	if f.kept == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.kept, f); i >= 0 {
		c.kept = slices.Delete(c.kept, i, i+1)
		c.keptBytes -= f.kept
	}
	f.kept = 0
}

// dropAhead makes room for n more bytes read ahead by giving up the oldest.
func (c *Client) dropAhead(n int64) {
	c.mu.Lock()
	var old []*flight
	left := c.keptBytes
	for _, f := range c.kept {
		if left+n <= c.options.BufferBytes/2 {
			break
		}
		left -= f.kept
		old = append(old, f)
	}
	c.mu.Unlock()
	for _, f := range old {
		f.blob.mu.Lock()
		c.unkeep(f)
		if f.refs == 0 {
			f.blob.forget(f)
		}
		f.blob.mu.Unlock()
	}
}
