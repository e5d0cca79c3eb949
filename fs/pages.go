package fs

// PageSize is that of the pages of Pages, bytes.
const PageSize = 4096

// Pages are pages of one file, by number.
type Pages struct {
	ID    ID
	Pages []uint64
}

// Pages returns the run, for Learn, of a start that has used these pages, file after file: the chunks that they are in. The kernel knows
// them better than the tree does, which sees also what is only read ahead, and nothing of what is in the page cache. What
// the tree has not is left out, and so is what streams.
func (t *Tree) Pages(used []Pages) []Touch {
	type chunk struct{ layer, num int }
	seen := map[chunk]bool{}
	var run []Touch
	for _, f := range used {
		l, entry := split(f.ID)
		if l < 0 || l >= len(t.layers) {
			continue
		}
		for _, n := range f.Pages {
			if n > 1<<50 || len(run) >= maxTouches {
				break
			}
			p, ok := t.layers[l].Place(int(entry), int64(n)*PageSize)
			if !ok || seen[chunk{l, p.Num}] {
				continue
			}
			seen[chunk{l, p.Num}] = true
			run = append(run, Touch{ID: f.ID, Offset: p.Offset})
		}
	}
	return run
}
