package fs

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/layer"
)

// ReadAt reads a regular file's bytes from off on into p. It is short only at the end of the file.
func (t *Tree) ReadAt(ctx context.Context, id ID, p []byte, off int64) (int, error) {
	size, err := t.size(ctx, id)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, syscall.EINVAL
	}
	if off >= size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), size-off)]
	stall := t.stats.begin()
	l, entry := split(id)
	n, missed := 0, false
	for n < len(p) {
		m, came, err := t.readChunk(ctx, l, int(entry), p[n:], off+int64(n))
		if err != nil {
			t.stalled(ctx, stall, id)
			return n, fmt.Errorf("read %s at %d: %w", t.Path(id), off+int64(n), err)
		}
		n += m
		missed = missed || came
	}
	t.stats.read(n)
	t.stalled(ctx, stall, id)
	t.readAhead(id, off, int64(n), size, missed)
	return n, nil
}

// stalled notes how long somebody waited for a read.
func (t *Tree) stalled(ctx context.Context, since time.Duration, id ID) {
	if priority.From(ctx) == priority.OnDemand {
		t.stats.end(since, id, "")
	}
}

// readChunk reads as much of p as is in the chunk that holds byte off, and tells whether the chunk had to be fetched for that.
func (t *Tree) readChunk(ctx context.Context, l, entry int, p []byte, off int64) (n int, missed bool, err error) {
	c, err := t.layers[l].Chunk(ctx, entry, off)
	if err != nil {
		return 0, false, err
	}
	if off < c.Offset || off-c.Offset >= c.Size {
		return 0, false, fmt.Errorf("layer %d gave bytes [%d,+%d) for %d: %w", l, c.Offset, c.Size, off, syscall.EIO)
	}
	first := priority.From(ctx) == priority.OnDemand && t.record.touch(l, c, makeID(l, uint32(entry)), t.stats.begin())
	if first {
		t.demand.came()
	}
	at := off - c.Offset
	p = p[:min(int64(len(p)), c.Size-at)]
	f := t.fetches.Get().(*fetch)
	f.layer, f.chunk, f.missed = t.layers[l], c, false
	n, err = t.cache.ReadAt(ctx, c.Digest, c.Size, p, at, f.fill)
	if err != nil {
		return 0, false, err // f may still be in use: by a fill that goes on for others
	}
	missed = f.missed
	f.layer = nil
	t.fetches.Put(f)
	if n < len(p) {
		return n, missed, fmt.Errorf("chunk %d of layer %d has %d bytes less than it said: %w", c.Index, l, len(p)-n, syscall.EIO)
	}
	if first {
		t.guess(l, entry, c, missed)
	}
	return n, missed, nil
}

// fetch is what a cache calls to get a chunk that it has not. It is reused, so that a hit allocates nothing.
type fetch struct {
	demand *demand
	layer  Layer
	chunk  layer.Chunk
	missed bool // fill has been called, by the one whose fetch it is
	fill   func(context.Context) ([]byte, error)
}

func (t *Tree) newFetch() *fetch {
	f := &fetch{demand: &t.demand}
	f.fill = f.get
	return f
}

func (f *fetch) get(ctx context.Context) ([]byte, error) {
	f.missed = true
	if priority.From(ctx) == priority.OnDemand {
		f.demand.waiting.Add(1)
		defer f.demand.answered()
	}
	return f.layer.Fetch(ctx, f.chunk)
}

// size returns the length of a regular file; EISDIR and EINVAL are the errors of anything else.
func (t *Tree) size(ctx context.Context, id ID) (int64, error) {
	if err := t.dead(); err != nil {
		return 0, err
	}
	a, err := t.Attr(ctx, id)
	if err != nil {
		return 0, err
	}
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return a.Size, nil
	case syscall.S_IFDIR:
		return 0, syscall.EISDIR
	default:
		return 0, syscall.EINVAL
	}
}

// touch brings a chunk into the cache.
func (t *Tree) touch(ctx context.Context, l int, c layer.Chunk) error {
	var one [1]byte
	f := t.newFetch()
	f.layer, f.chunk = t.layers[l], c
	_, err := t.cache.ReadAt(ctx, c.Digest, c.Size, one[:], 0, f.fill)
	return err
}
