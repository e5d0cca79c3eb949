package fs

import (
	"context"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/microsandbox/msb-fs/layer"
)

// Touch is a chunk's first use in a run: that of the file's bytes from Offset on. As IDs are the same wherever an image is
// opened, so is a list of touches: a start-up profile.
type Touch struct {
	ID     ID            `json:"id"`
	Offset int64         `json:"off"`
	At     time.Duration `json:"at"`               // since the tree was opened
	Unused int           `json:"unused,omitempty"` // runs in a row that did without it, see Learn
}

// maxTouches bounds a profile: a start-up that touches more reads most of its image anyway.
const maxTouches = 1 << 16

// recorder notes which chunks are read, in order; the zero value is ready.
type recorder struct {
	over    atomic.Bool // nothing more is noted
	mu      sync.Mutex
	seen    map[uint64]struct{} // layer<<32 | chunk
	touches []Touch
}

// touch notes a read of chunk c, and tells whether it was the first.
func (r *recorder) touch(l int, c layer.Chunk, id ID, at time.Duration) bool {
	if r.over.Load() {
		return false
	}
	key := uint64(l)<<32 | uint64(uint32(c.Index))
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.seen[key]; ok || r.over.Load() {
		return false
	}
	if r.seen == nil {
		r.seen = make(map[uint64]struct{})
	}
	r.seen[key] = struct{}{}
	r.touches = append(r.touches, Touch{ID: id, Offset: c.Offset, At: at})
	if len(r.touches) == maxTouches {
		r.over.Store(true)
		r.seen = nil
	}
	return true
}

// touched tells whether somebody has read chunk num of a layer, or waits for it.
func (r *recorder) touched(l, num int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.seen[uint64(l)<<32|uint64(uint32(num))]
	return ok
}

// demand tells since when nobody has asked for anything new.
type demand struct {
	start   time.Time    // whose monotonic clock counts; immutable
	waiting atomic.Int64 // readers whose bytes are being fetched
	last    atomic.Int64 // when one last came or was answered, nanoseconds since start
}

func (d *demand) came() { d.last.Store(int64(time.Since(d.start))) }

func (d *demand) answered() {
	d.waiting.Add(-1)
	d.came()
}

// Quiet is for how long nobody has read anything for the first time, or waited for it, since the tree was opened. What is
// read again does not count, nor what is read ahead.
func (t *Tree) Quiet() time.Duration {
	if t.demand.waiting.Load() > 0 {
		return 0
	}
	return time.Since(t.demand.start) - time.Duration(t.demand.last.Load())
}

// Profile returns the chunks that were read so far, in the order of their first use. What was only read ahead is not
// among them.
func (t *Tree) Profile() []Touch {
	t.record.mu.Lock()
	defer t.record.mu.Unlock()
	return slices.Clone(t.record.touches)
}

// EndProfile is Profile for the last time: what is read from now on is not noted, which costs a little.
func (t *Tree) EndProfile() []Touch {
	t.record.over.Store(true)
	t.record.mu.Lock()
	defer t.record.mu.Unlock()
	t.record.seen = nil
	return slices.Clone(t.record.touches)
}

// forgetAfter is how many runs in a row may do without a chunk before it is dropped from a profile.
const forgetAfter = 3

// Learn returns the profile for the next run: what the last run touched, in its order, and what only earlier ones did, for
// as long as that was not too many runs ago.
func Learn(profile, run []Touch) []Touch {
	type place struct {
		id  ID
		off int64
	}
	used := make(map[place]bool, len(run))
	next := make([]Touch, 0, len(run))
	for _, c := range run {
		if at := (place{c.ID, c.Offset}); !used[at] {
			used[at] = true
			c.Unused = 0
			next = append(next, c)
		}
	}
	for _, c := range profile {
		if c.Unused++; !used[place{c.ID, c.Offset}] && c.Unused < forgetAfter {
			next = append(next, c)
		}
	}
	return next[:min(len(next), maxTouches)]
}

// landmark ends the files that an eStargz layer's builder thought worth having early
// (https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md).
const landmark = ".prefetch.landmark"

// Landmarks returns the profile that the layers' builders have left in eStargz layers. It waits for layers that stream.
func (t *Tree) Landmarks(ctx context.Context) ([]Touch, error) {
	var found []Touch
	for i, l := range t.layers {
		es, err := beforeLandmark(ctx, l)
		if err != nil {
			return found, err
		}
		for _, e := range es {
			found = t.appendFile(found, makeID(i, e.number), e.size)
		}
	}
	return found, nil
}

// early is a regular file that stands before a landmark.
type early struct {
	number uint32
	size   int64
}

// beforeLandmark lists the files of a layer that stand before its landmark, none where it has none.
func beforeLandmark(ctx context.Context, l Layer) ([]early, error) {
	var files []early
	for from := 0; ; {
		es, done, err := l.Entries(ctx, from)
		if err != nil {
			return nil, err
		}
		for i := range es {
			if path.Base(es[i].Name) == landmark {
				return files, nil
			}
			if es[i].Kind == layer.Plain && es[i].Size > 0 && es[i].Mode&typeMask == typeFile {
				files = append(files, early{uint32(from + i), es[i].Size})
			}
		}
		if from += len(es); done || len(files) > maxTouches {
			return nil, nil
		}
	}
}
