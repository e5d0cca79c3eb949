package fs

import (
	"sync"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// Read-ahead: a file that is read in order, and has to be fetched for that, has its next chunks fetched before they are asked for. The
// window doubles with every read. Of a file that is here nothing more is fetched: who brought it, a profile say, knew how much is needed.
const (
	aheadFiles = 64       // files whose position is remembered
	aheadMax   = 32 << 20 // bytes ahead of the reader
	aheadJobs  = 8        // files being read ahead of at a time
)

// ahead remembers where files were last read; the zero value is ready.
type ahead struct {
	mu    sync.Mutex
	files [aheadFiles]position // by id modulo aheadFiles
	jobs  int
}

// position is how far a file has been read in order.
type position struct {
	id     ID
	next   int64 // where the next read of a sequence starts
	asked  int64 // up to here has been fetched or is being
	window int64
	busy   bool
}

// readAhead notes that bytes [off, off+n) of a file were read, and whether they had to be fetched, and fetches what will be read next
// if they were read in order.
func (t *Tree) readAhead(id ID, off, n, size int64, missed bool) {
	a := &t.ahead
	a.mu.Lock()
	p := &a.files[id%aheadFiles]
	if p.id != id {
		if p.busy {
			a.mu.Unlock()
			return
		}
		*p = position{id: id}
		if off != 0 {
			p.next = -1
		}
	}
	// The kernel's own read-ahead sends neighbours side by side, so that they come a little out of order.
	if d := off - p.next; p.next < 0 || d < -2<<20 || d > 2<<20 {
		p.next, p.window = off+n, 0
		a.mu.Unlock()
		return
	}
	p.next = max(p.next, off+n)
	if !missed && p.window == 0 {
		a.mu.Unlock()
		return
	}
	p.window = min(max(2*p.window, 1<<20), aheadMax)
	to := min(p.next+p.window, size)
	if p.busy || to <= p.asked || p.next >= size || a.jobs >= aheadJobs || !t.begin() {
		a.mu.Unlock()
		return
	}
	from := max(p.next, p.asked)
	p.busy, p.asked = true, to
	a.jobs++
	a.mu.Unlock()
	go func() {
		defer t.work.Done()
		end := t.prefetch(id, from, to)
		a.mu.Lock()
		a.jobs--
		p.busy = false
		p.asked = max(end, from)
		a.mu.Unlock()
	}()
}

// prefetch brings the chunks of bytes [from, to) of a file into the cache and returns where it got to.
func (t *Tree) prefetch(id ID, from, to int64) int64 {
	ctx := priority.With(t.ctx, priority.Predicted)
	l, entry := split(id)
	for from < to {
		c, err := t.layers[l].Chunk(ctx, int(entry), from)
		if err != nil || c.Size <= 0 || from < c.Offset || from >= c.Offset+c.Size {
			return from
		}
		if !t.cache.Has(c.Digest) && t.touch(ctx, l, c) != nil {
			return from
		}
		from = c.Offset + c.Size
	}
	return from
}
