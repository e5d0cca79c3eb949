package fs

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// TreeStats is what a tree has done so far.
type TreeStats struct {
	Reads  int64   // reads of file contents
	Bytes  int64   // that they returned
	Stalls []Stall // longest total first
	Sealed bool    // whether the tree is sealed
	Files  int64   // of a sealed tree: files and directories
	Size   int64   // of a sealed tree: bytes of all regular files
}

// Stall is how long one file kept its readers waiting.
type Stall struct {
	Path  string
	Total time.Duration
	Count int64
}

const (
	stallMin   = time.Millisecond // what took less is no stall
	stallFiles = 4096             // files remembered
)

// stats gathers them.
type stats struct {
	start        time.Time // whose monotonic clock stalls are measured by; immutable
	reads, bytes atomic.Int64

	mu     sync.Mutex
	stalls map[stallKey]*Stall
}

// stallKey is a file by its ID, or by a directory's and a name where it was being looked for.
type stallKey struct {
	id   ID
	name string
}

func (s *stats) begin() time.Duration { return time.Since(s.start) }

// end notes how long the file took that began at from.
func (s *stats) end(from time.Duration, id ID, name string) {
	d := time.Since(s.start) - from
	if d < stallMin {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := stallKey{id, name}
	e := s.stalls[k]
	if e == nil {
		if len(s.stalls) >= stallFiles {
			return
		}
		if s.stalls == nil {
			s.stalls = make(map[stallKey]*Stall)
		}
		e = new(Stall)
		s.stalls[k] = e
	}
	e.Total += d
	e.Count++
}

func (s *stats) read(n int) {
	s.reads.Add(1)
	s.bytes.Add(int64(n))
}

// Stats returns what the tree has done so far.
func (t *Tree) Stats() TreeStats {
	st := TreeStats{Reads: t.stats.reads.Load(), Bytes: t.stats.bytes.Load()}
	if f := t.flat.Load(); f != nil {
		st.Sealed, st.Files, st.Size = true, int64(len(f.nodes)-1), int64(f.header.Bytes)
	}
	t.stats.mu.Lock()
	byPath := make(map[stallKey]Stall, len(t.stats.stalls))
	for k, v := range t.stats.stalls {
		byPath[k] = *v
	}
	t.stats.mu.Unlock()
	for k, v := range byPath {
		v.Path = t.Path(k.id)
		if k.name != "" {
			if v.Path == "/" {
				v.Path = ""
			}
			v.Path += "/" + k.name
		}
		st.Stalls = append(st.Stalls, v)
	}
	slices.SortFunc(st.Stalls, func(a, b Stall) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Path, b.Path))
	})
	return st
}
