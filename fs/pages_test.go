package fs

import (
	"context"
	"strings"
	"testing"
)

func TestPages(t *testing.T) {
	body := strings.Repeat("x", 1<<17)
	l := newLayer(file("a", "1"+body+body), file("b", "2"+body), file("c", "3"))
	tree := sealedTree(t, Options{}, l)
	a, b := mustWalk(t, tree, "a"), mustWalk(t, tree, "b")
	const perChunk = 1 << 17 / PageSize
	run := tree.Pages([]Pages{
		{b, []uint64{0, 1, 2}}, {a, []uint64{perChunk, perChunk + 1, 1 << 40, 1 << 63}}, {77 << 24, []uint64{0}}, {Root, []uint64{0}}, {b, []uint64{3}},
	})
	// A file's last page may lie in two chunks or behind the end: what is there is what counts.
	if len(run) != 2 || run[0].ID != b || run[0].Offset != 0 || run[1].ID != a || run[1].Offset != 1<<17 {
		t.Fatalf("the run is %+v", run)
	}
	if err := tree.Replay(context.Background(), Learn(nil, run)); err != nil {
		t.Fatal(err)
	}
	if n := l.fetches.Load(); n != 2 {
		t.Errorf("%d chunks were fetched, want 2", n)
	}
}
