package fs

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// answer asks a growing tree for a path from the root.
func (g *grow) answer(p string) string {
	id, dir := Root, true
	for part := range strings.SplitSeq(p, "/") {
		if !dir {
			return "ENOTDIR"
		}
		s, err := g.lookup(id, part)
		switch {
		case err == nil:
			id, dir = s.id, s.dir
		case errors.Is(err, errUncertain):
			return ""
		case errors.Is(err, syscall.ENOENT):
			return "ENOENT"
		default:
			return err.Error()
		}
	}
	return fmt.Sprintf("%#x %v", id, dir)
}

// listing asks a growing tree for the names in a directory.
func (g *grow) listing(p string) string {
	id := Root
	for part := range strings.SplitSeq(p, "/") {
		if part == "" {
			break
		}
		s, err := g.lookup(id, part)
		if err != nil || !s.dir {
			return ""
		}
		id = s.id
	}
	n, err := g.dirAt(id)
	if err != nil {
		return ""
	}
	list, err := g.list(n)
	if err != nil {
		return ""
	}
	var names []string
	for _, c := range list {
		names = append(names, c.name.name)
	}
	return fmt.Sprint(names)
}

// Whatever a tree answers while its layers stream, in whatever order they do, it answers in the end. (Of layers that name
// nothing twice, and without symlinks: see move.)
func TestCertainAnswersLast(t *testing.T) {
	var paths []string
	for _, a := range []string{"a", "b", "c", "d"} {
		paths = append(paths, a)
		for _, b := range []string{"a", "b", "c", "d"} {
			paths = append(paths, a+"/"+b, a+"/"+b+"/c")
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		var layers []*fakeLayer
		for _, l := range genLayers(rt) {
			taken := map[string]bool{}
			var items []item
			for _, it := range l {
				name := it.Name
				ok := !taken[name] && it.Typeflag != '2'
				for p := path.Dir(name); p != "."; p = path.Dir(p) {
					ok = ok && !taken[p+"/"] // a file of that name
				}
				if !ok {
					continue
				}
				taken[name] = true
				if it.Typeflag != '5' {
					taken[name+"/"] = true
				}
				for p := path.Dir(name); p != "."; p = path.Dir(p) {
					taken[p] = true
				}
				items = append(items, it)
			}
			layers = append(layers, newLayer(items...))
		}
		g := newGrow(len(layers))
		next := make([]int, len(layers))
		answers, lists := map[string]string{}, map[string]string{}
		for left := len(layers); left > 0; {
			l := rapid.IntRange(0, len(layers)-1).Draw(rt, "layer")
			switch n := len(layers[l].entries); {
			case next[l] < n:
				step := min(rapid.IntRange(1, 3).Draw(rt, "step"), n-next[l])
				if err := g.add(l, layers[l].entries[next[l]:next[l]+step]); err != nil {
					rt.Fatal(err)
				}
				next[l] += step
			case next[l] == n:
				g.end(l)
				next[l]++
				left--
			}
			for _, p := range paths {
				got, before := g.answer(p), answers[p]
				if before != "" && got != before {
					rt.Fatalf("%s: %s, but it was %s before\n%v", p, got, before, next)
				}
				answers[p] = got
			}
			for _, p := range append(paths, "") {
				got, before := g.listing(p), lists[p]
				if before != "" && got != before {
					rt.Fatalf("list %s: %s, but it was %s before", p, got, before)
				}
				lists[p] = got
			}
		}
		for _, p := range paths {
			if answers[p] == "" {
				rt.Fatalf("%s: uncertain though every layer has ended", p)
			}
		}
		f, err := seal(g)
		if err != nil {
			rt.Fatal(err)
		}
		for _, p := range paths {
			if want, got := answers[p], f.answer(p); got != want {
				rt.Fatalf("%s: %s growing, %s sealed", p, want, got)
			}
		}
	})
}

// answer asks a sealed tree.
func (t *flat) answer(p string) string {
	n := t.node(rootNode)
	for part := range strings.SplitSeq(p, "/") {
		if !n.isDir() {
			return "ENOTDIR"
		}
		if n = t.child(n, part); n == nil {
			return "ENOENT"
		}
	}
	return fmt.Sprintf("%#x %v", n.ID, n.isDir())
}
