package fs

import (
	"context"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
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
	mu      sync.Mutex
	seen    map[uint64]struct{} // layer<<32 | chunk
	touches []Touch
	full    bool
}

// touch notes a read of chunk c at its first time.
func (r *recorder) touch(l int, c layer.Chunk, id ID, at time.Duration) {
	key := uint64(l)<<32 | uint64(uint32(c.Index))
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.seen[key]; ok || r.full {
		return
	}
	if r.seen == nil {
		r.seen = make(map[uint64]struct{})
	}
	r.seen[key] = struct{}{}
	r.touches = append(r.touches, Touch{ID: id, Offset: c.Offset, At: at})
	if r.full = len(r.touches) == maxTouches; r.full {
		r.seen = nil
	}
}

// Profile returns the chunks that were read so far, in the order of their first use. What was only read ahead is not
// among them.
func (t *Tree) Profile() []Touch {
	t.record.mu.Lock()
	defer t.record.mu.Unlock()
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

// replayJobs is how many chunks a replay has under way: enough to hide a long link's latency.
const replayJobs = 16

// Replay brings a profile's chunks into the cache in the profile's order, ahead of whoever will read them, and returns
// when that is done or ctx ends. It fetches as Predicted unless ctx has another class. What a profile has that the tree
// has not, or that cannot be fetched now, is left out: only demand decides what is an error.
func (t *Tree) Replay(ctx context.Context, profile []Touch) error {
	if priority.From(ctx) == priority.OnDemand {
		ctx = priority.With(ctx, priority.Predicted)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	next := make(chan Touch)
	var jobs sync.WaitGroup
	for range min(replayJobs, len(profile)) {
		jobs.Go(func() {
			for c := range next {
				t.bring(ctx, c)
			}
		})
	}
	defer jobs.Wait()
	defer close(next)
	for _, c := range profile {
		select {
		case next <- c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// bring has one chunk fetched.
func (t *Tree) bring(ctx context.Context, c Touch) {
	l, entry := split(c.ID)
	if size, err := t.size(ctx, c.ID); err != nil || c.Offset < 0 || c.Offset >= size || l < 0 || l >= len(t.layers) {
		return
	}
	chunk, err := t.layers[l].Chunk(ctx, int(entry), c.Offset)
	if err == nil && !t.cache.Has(chunk.Digest) {
		_ = t.touch(ctx, l, chunk)
	}
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
			for off := int64(0); off < e.size && len(found) < maxTouches; off += layer.ChunkSize {
				found = append(found, Touch{ID: makeID(i, e.number), Offset: off})
			}
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
