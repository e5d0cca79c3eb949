package fs

import (
	"sync"
	"sync/atomic"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/layer"
)

// Guessing: programs read many small files one after the other, each of which costs a round trip. While one is waited for the link
// is idle, so what lies behind it in the blob is fetched as well: the files of its directory, as builders write them. How far is a
// question of how much the link carries in that time; how much in all, of how much of it has turned out to be wanted.
const (
	guessJobs    = 8         // under way at a time
	guessFloor   = 512 << 10 // bytes of blobs that may be fetched in vain before anything is known
	guessShare   = 4         // and then one for so many that were wanted
	guessLeast   = 32 << 10  // bytes that are worth a request
	guessEntries = 4096      // that are looked through for one guess
	guessSkip    = 64 << 10  // behind a chunk comes with it anyway, see package layer
	guessReach   = 512 << 10 // from one chunk to the next that is not here, bytes of the blob
)

// guesses is what has been guessed. The zero value guesses nothing; it counts all the same.
type guesses struct {
	window atomic.Pointer[func(layer int) int64]
	misses []atomic.Int64 // by layer: chunks that somebody had to wait for

	mu     sync.Mutex
	open   map[uint64]int64 // layer<<32 | chunk: guessed and not read yet; what it cost
	wanted int64            // bytes of blobs that were read
	vain   int64            // that were guessed and have not been
	jobs   int
}

// Guess has the tree fetch what lies beside the chunks that are waited for. window says how many bytes of a layer's blob pass while one
// request is answered; layers count from the bottom. nil ends it.
func (t *Tree) Guess(window func(layer int) int64) {
	if window == nil {
		t.guesses.window.Store(nil)
		return
	}
	t.guesses.window.Store(&window)
}

// Misses returns, for each layer, how many chunks have had to be waited for.
func (t *Tree) Misses() []int64 {
	out := make([]int64, len(t.layers))
	for i := range out {
		out[i] = t.guesses.misses[i].Load()
	}
	return out
}

// guess is told of the first read of chunk c of an entry, and whether it had to be fetched.
func (t *Tree) guess(l, entry int, c layer.Chunk, missed bool) {
	g := &t.guesses
	if missed {
		g.misses[l].Add(1)
	}
	window := g.window.Load()
	if window == nil {
		return
	}
	p, ok := t.layers[l].Place(entry, c.Offset)
	if !ok {
		return
	}
	room, ok := g.read(uint64(l)<<32|uint64(uint32(p.Num)), p.To-p.From, missed)
	if room = min(room, (*window)(l)); !ok || room < guessLeast {
		return
	}
	nums := t.behind(l, entry, p, room)
	if len(nums) == 0 || !t.beginGuess() {
		return
	}
	go func() {
		defer t.work.Done()
		_ = t.layers[l].Bring(priority.With(t.ctx, priority.Predicted), nums)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.jobs--
	}()
}

// read notes that a chunk has been read for the first time, and says how many bytes may be guessed now; ok is false where there is no
// reason to.
func (g *guesses) read(key uint64, cost int64, missed bool) (room int64, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted += cost
	spent, guessed := g.open[key]
	if guessed {
		delete(g.open, key)
		g.vain -= spent
	}
	return guessFloor + g.wanted/guessShare - g.vain, (missed || guessed) && g.jobs < guessJobs
}

func (t *Tree) beginGuess() bool {
	g := &t.guesses
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.jobs >= guessJobs || !t.begin() {
		return false
	}
	g.jobs++
	return true
}

// behind returns chunks that lie behind p in its layer's blob and that nobody has asked for, up to room bytes of the blob, and notes
// them as guessed.
func (t *Tree) behind(l, entry int, p layer.Place, room int64) (nums []int) {
	g := &t.guesses
	off, last, end := p.Offset+p.Size, p.Num, p.To
	for range guessEntries {
		q, ok := t.layers[l].Place(entry, off)
		if !ok || q.Offset > off {
			entry, off = entry+1, 0
			continue
		}
		off = q.Offset + q.Size
		if q.Num <= last || q.To <= p.To || q.To <= p.From+guessSkip {
			continue
		}
		if q.From-end > guessReach {
			break
		}
		last = q.Num
		key := uint64(l)<<32 | uint64(uint32(q.Num))
		if t.record.touched(l, q.Num) {
			continue
		}
		cost := q.To - q.From
		if len(nums) > 0 { // what lies between comes too
			cost = max(0, q.To-end)
		}
		if cost > room {
			break
		}
		g.mu.Lock()
		_, twice := g.open[key]
		if !twice {
			if g.open == nil {
				g.open = make(map[uint64]int64)
			}
			g.open[key] = cost
			g.vain += cost
		}
		g.mu.Unlock()
		if twice {
			continue
		}
		nums, room, end = append(nums, q.Num), room-cost, q.To
	}
	return nums
}
