package fs

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/layer"
)

const (
	// replayJobs is how many runs of blobs a replay has under way: enough to hide a long link's latency.
	replayJobs = 12
	// The first window of a replay is small, so that what is needed first comes first; the later ones are larger, so that
	// neighbours meet. Bytes of blobs.
	firstWindow = 512 << 10
	lastWindow  = 8 << 20
	maxBatch    = 1 << 20  // of a blob, that is asked for at once
	maxGap      = 32 << 10 // of a blob that nobody wants, rather than another request
	gapShare    = 10       // a tenth of what is wanted may be fetched in vain, all in all
)

// batch is a run of one layer's blob, and the chunks of a profile that are in it.
type batch struct {
	layer    int
	from, to int64
	nums     []int // ascending
	first    int   // the place in the profile of the one that is used first
}

// Replay brings a profile's chunks into the cache, roughly in the profile's order and many with one request, ahead of whoever
// will read them, and returns when that is done or ctx ends. It fetches as Predicted unless ctx has another class. What a profile has
// that the tree has not, or that cannot be fetched now, is left out: only demand decides what is an error. So is what
// streams, which comes by itself.
func (t *Tree) Replay(ctx context.Context, profile []Touch) error {
	if priority.From(ctx) == priority.OnDemand {
		ctx = priority.With(ctx, priority.Predicted)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	batches := t.batches(profile)
	next := make(chan batch)
	var jobs sync.WaitGroup
	for range min(replayJobs, len(batches)) {
		jobs.Go(func() {
			for b := range next {
				// Who reads a chunk already fetches it, or has.
				nums := slices.DeleteFunc(b.nums, func(n int) bool { return t.record.touched(b.layer, n) })
				_ = t.layers[b.layer].Bring(ctx, nums)
			}
		})
	}
	defer jobs.Wait()
	defer close(next)
	for _, b := range batches {
		select {
		case next <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Range is a run of a layer's blob, bytes. Layers count from the bottom.
type Range struct {
	Layer int   `json:"layer"`
	From  int64 `json:"from"`
	To    int64 `json:"to"`
}

// Ranges returns the runs of blobs that a Replay of profile reads, in its order.
func (t *Tree) Ranges(profile []Touch) []Range {
	var out []Range
	for _, b := range t.batches(profile) {
		out = append(out, Range{b.layer, b.from, b.to})
	}
	return out
}

// batches makes requests of a profile: window after window, within each of which neighbours go together.
func (t *Tree) batches(profile []Touch) []batch {
	windows, total := t.windows(profile)
	gap := worthwhile(windows, total/gapShare)
	var out []batch
	for _, w := range windows {
		from := len(out)
		for _, b := range w {
			if i := slices.IndexFunc(out[:from], func(m batch) bool { return m.covers(&b) }); i >= 0 {
				// An earlier one reads those bytes anyway, as where chunks share what has to be inflated for them.
				at, _ := slices.BinarySearch(out[i].nums, b.nums[0])
				out[i].nums = slices.Insert(out[i].nums, at, b.nums[0])
				continue
			}
			if last := len(out) - 1; last >= from && out[last].takes(&b, gap) {
				m := &out[last]
				m.to, m.nums, m.first = max(m.to, b.to), append(m.nums, b.nums...), min(m.first, b.first)
			} else {
				out = append(out, b)
			}
		}
		slices.SortFunc(out[from:], func(a, b batch) int { return cmp.Compare(a.first, b.first) })
	}
	return out
}

// takes tells whether b, which lies behind m, may go with it.
func (m *batch) takes(b *batch, gap int64) bool {
	return b.layer == m.layer && b.from-m.to <= gap && (b.to <= m.to || b.to-m.from <= maxBatch)
}

// covers tells whether m reads all that b would.
func (m *batch) covers(b *batch) bool {
	return b.layer == m.layer && b.from >= m.from && b.to <= m.to
}

// windows cuts a profile into windows of single chunks, each in order of layer and blob, and says how many bytes of blobs
// they are.
func (t *Tree) windows(profile []Touch) (out [][]batch, total int64) {
	type chunk struct{ layer, num int }
	seen := make(map[chunk]bool, len(profile))
	limit, size := int64(firstWindow), int64(0)
	var w []batch
	flush := func() {
		slices.SortFunc(w, func(a, b batch) int {
			return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.nums[0], b.nums[0]))
		})
		out, w, size = append(out, w), nil, 0
		limit = min(2*limit, lastWindow)
	}
	for i, c := range profile {
		l, entry := split(c.ID)
		if l < 0 || l >= len(t.layers) {
			continue
		}
		p, ok := t.layers[l].Place(int(entry), c.Offset)
		if !ok || seen[chunk{l, p.Num}] {
			continue
		}
		seen[chunk{l, p.Num}] = true
		w = append(w, batch{layer: l, from: p.From, to: p.To, nums: []int{p.Num}, first: i})
		total += p.To - p.From
		if size += p.To - p.From; size >= limit {
			flush()
		}
	}
	flush()
	return out, total
}

// worthwhile is the longest gap between neighbours that is worth fetching, when no more than waste bytes may be fetched in
// vain in all.
func worthwhile(windows [][]batch, waste int64) int64 {
	var gaps []int64
	for _, w := range windows {
		for i := 1; i < len(w); i++ {
			if g := w[i].from - w[i-1].to; w[i].layer == w[i-1].layer && g > 0 && g <= maxGap {
				gaps = append(gaps, g)
			}
		}
	}
	slices.Sort(gaps)
	longest := int64(0)
	for _, g := range gaps {
		if waste -= g; waste < 0 {
			break
		}
		longest = g
	}
	return longest
}

// appendFile appends what a file's first n bytes are to a profile. It appends nothing of what streams.
func (t *Tree) appendFile(profile []Touch, id ID, n int64) []Touch {
	l, entry := split(id)
	for off := int64(0); off < n && len(profile) < maxTouches && l >= 0 && l < len(t.layers); {
		p, ok := t.layers[l].Place(int(entry), off)
		if !ok || p.Size <= 0 || p.Offset > off || off-p.Offset >= p.Size {
			off += layer.ChunkSize // a hole, or nobody knows
			continue
		}
		profile = append(profile, Touch{ID: id, Offset: p.Offset})
		off = p.Offset + p.Size
	}
	return profile
}

// Touched returns, for each layer, how many bytes of its blob hold what has been read on demand so far. It is 0 for a layer
// that streams.
func (t *Tree) Touched() []int64 { return t.Cost(t.Profile()) }

// Cost returns, for each layer, how many bytes of its blob hold a profile's chunks.
func (t *Tree) Cost(profile []Touch) []int64 {
	out := make([]int64, len(t.layers))
	windows, _ := t.windows(profile)
	all := slices.Concat(windows...)
	slices.SortFunc(all, func(a, b batch) int { return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.from, b.from)) })
	end := make([]int64, len(t.layers))
	for _, b := range all {
		out[b.layer] += max(0, b.to-max(b.from, end[b.layer]))
		end[b.layer] = max(end[b.layer], b.to)
	}
	return out
}
