package fs

import (
	"errors"
	"strings"
	"syscall"
)

// maxLinks bounds how many hard links may lead to one another before a file; a tar written by anything sane has one.
const maxLinks = 64

// linkNow finds the target of a hard link of layer l as it arrives: a file that the layer has already shown.
func (g *grow) linkNow(l int, target string) (ref, bool) {
	n := g.place(l, target, false)
	if n == nil {
		return ref{}, false
	}
	m := n.mark(l)
	if m == nil || m.what&isFile == 0 {
		return ref{}, false
	}
	if m.what&isLink == 0 {
		return ref{l, m.entry}, true
	}
	r, ok := g.layers[l].links[m.entry]
	return r, ok
}

// link finds the file that a hard link names: what its layer had shown at the target when the link came, else what the
// layers below have there, else what its layer shows there later. A link to nothing is ENOENT.
func (g *grow) link(r ref, depth int) (ref, error) {
	gl := &g.layers[r.layer]
	if t, ok := gl.links[r.entry]; ok {
		return t, nil
	}
	if depth == 0 {
		return ref{}, syscall.ENOENT
	}
	target := gl.entries[r.entry].Linkname
	t, err := g.fileBelow(target, r.layer, depth)
	if !errors.Is(err, syscall.ENOENT) {
		return t, err
	}
	n := g.place(r.layer, target, false)
	if n != nil {
		if m := n.mark(r.layer); m != nil && m.what&isFile != 0 {
			if m.what&isLink == 0 {
				return ref{r.layer, m.entry}, nil
			}
			if m.entry == r.entry {
				return ref{}, syscall.ENOENT
			}
			return g.link(ref{r.layer, m.entry}, depth-1)
		}
	}
	if !gl.ended {
		return ref{}, errUncertain
	}
	return ref{}, syscall.ENOENT
}

// fileBelow finds the file that layers [0, below) show at a path.
func (g *grow) fileBelow(path string, below, depth int) (ref, error) {
	n := g.root
	for links := 0; path != ""; {
		part, rest, more := strings.Cut(path, "/")
		path = rest
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			if n.parent != nil {
				n = n.parent
			}
			continue
		}
		floor := n.floor(below)
		k := n.kids[part]
		if k == nil {
			if !g.ended(floor, below) {
				return ref{}, errUncertain
			}
			return ref{}, syscall.ENOENT
		}
		if !more {
			return g.lookBelow(k, floor, below, depth)
		}
		v, err := g.look(k, floor, below)
		if err != nil {
			return ref{}, err
		}
		if v.dir {
			n = k
			continue
		}
		target := g.target(v.attrs)
		if links++; target == "" || links > maxSymlinks || len(target)+len(path) > maxPath {
			return ref{}, syscall.ENOENT
		}
		if target[0] == '/' {
			n = g.root
		}
		path = target + "/" + path
	}
	return ref{}, syscall.ENOENT
}

// lookBelow is look for a link's target, which counts down how many links are left to follow.
func (g *grow) lookBelow(n *name, floor, below, depth int) (ref, error) {
	for i := range n.marks {
		m := &n.marks[i]
		if m.layer >= below {
			continue
		}
		if m.layer < floor {
			break
		}
		if m.what&isLink != 0 && g.ended(m.layer+1, below) {
			return g.link(ref{m.layer, m.entry}, depth-1)
		}
		if m.object() || m.what&isWhiteout != 0 {
			break
		}
	}
	v, err := g.look(n, floor, below)
	if err != nil {
		return ref{}, err
	}
	if v.dir {
		return ref{}, syscall.ENOENT
	}
	return v.attrs, nil
}
