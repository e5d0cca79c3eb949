package trace

import (
	"maps"
	"slices"
)

// Profile is what programs asked of each file, by page: for start-up profiles, which the daemon's own reads cannot tell, because the page cache
// answers for it. Files are in the order of their first page.
func Profile(r *Recording) []Touched {
	var order []uint64
	seen := map[uint64]map[uint64]bool{}
	for _, e := range r.Events {
		if e.Kind != Get && e.Kind != Fault {
			continue
		}
		if seen[e.A] == nil {
			seen[e.A] = map[uint64]bool{}
			order = append(order, e.A)
		}
		for i := range e.pages() {
			seen[e.A][e.B+i] = true
		}
	}
	out := make([]Touched, 0, len(order))
	for _, node := range order {
		out = append(out, Touched{Node: node, Path: r.Paths[node], Pages: slices.Sorted(maps.Keys(seen[node]))})
	}
	return out
}

// Touched are the pages of one file that programs have asked for, 4 KiB each, by number, ascending.
type Touched struct {
	Node  uint64   `json:"node"`
	Path  string   `json:"path,omitempty"`
	Pages []uint64 `json:"pages"`
}
