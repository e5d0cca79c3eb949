package fs

import (
	"errors"
	"syscall"
)

// A layer that has a/b and no a means whatever the layers below have as a. Where that is a symbolic link, unpacking
// follows it, and so the layer's names below a are moved to where it leads. Layers that stream side by side cannot know
// that at once: until the lower ones have decided, a is pending in its layer, and nobody is told of it.

// maxMoves bounds how often a layer's names are moved; an image has a handful of such links.
const maxMoves = 64

// imply makes m, a mark of n, a directory that must be there for what is below it.
func (g *grow) imply(n *name, m *mark, id ID) {
	m.what |= isImplicit
	m.id = id
	g.settle(n, m.layer)
}

// settle moves what layer l has below n if lower layers have a symbolic link there, and notes n as pending while they
// have not decided.
func (g *grow) settle(n *name, l int) {
	gl := &g.layers[l]
	m := n.mark(l)
	if m == nil || m.what&isImplicit == 0 || m.what&isWhiteout != 0 || n.parent == nil {
		delete(gl.pending, n)
		return
	}
	v, err := g.look(n, n.parent.floor(l), l)
	if errors.Is(err, errUncertain) {
		if gl.pending == nil {
			gl.pending = make(map[*name]bool)
		}
		gl.pending[n] = true
		return
	}
	delete(gl.pending, n)
	if err != nil || v.dir {
		return
	}
	if target := g.target(v.attrs); target != "" && len(gl.moved) < maxMoves {
		g.move(n, l, target)
	}
}

// move puts what layer l has below n to where target leads, and what it will yet have.
func (g *grow) move(n *name, l int, target string) {
	gl := &g.layers[l]
	if gl.moved == nil {
		gl.moved = make(map[*name]string)
	}
	gl.moved[n] = target
	m := n.mark(l)
	var entries []uint32
	for e, at := range gl.at {
		if at.below(n) {
			entries = append(entries, uint32(e))
		}
	}
	g.clear(m)
	m.what = isMoved
	for _, e := range entries {
		gl.at[e] = nil
		g.insert(l, e)
	}
}

// below reports whether n is somewhere below dir.
func (n *name) below(dir *name) bool {
	for n != nil && n != dir {
		n = n.parent
		if n == dir {
			return true
		}
	}
	return false
}

// leads returns where a layer's names below n belong instead: n is a symbolic link, in that layer or in one below.
func (g *grow) leads(n *name, m *mark) (string, bool) {
	if m.what&isMoved != 0 {
		return g.layers[m.layer].moved[n], true
	}
	r := ref{m.layer, m.entry}
	if m.what&isLink != 0 {
		var ok bool
		if r, ok = g.layers[m.layer].links[m.entry]; !ok {
			return "", false
		}
	}
	t := g.target(r)
	return t, t != ""
}

// target returns where a symbolic link points to, "" when r is none.
func (g *grow) target(r ref) string {
	if r.layer < 0 {
		return ""
	}
	if e := &g.layers[r.layer].entries[r.entry]; e.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		return e.Linkname
	}
	return ""
}
