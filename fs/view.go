package fs

import (
	"errors"
	"slices"
	"strings"
	"syscall"

	"github.com/microsandbox/msb-fs/layer"
)

// errUncertain is the answer of a growing tree that a layer may still change: ask again after grow.changed.
const errUncertain = constError("a layer that could change the answer is still streaming")

type constError string

func (e constError) Error() string { return string(e) }

// child is one visible name of a directory.
type child struct {
	name *name
	id   ID
	dir  bool
}

// seen is what the layers together show at a path.
type seen struct {
	id    ID
	dir   bool
	attrs ref // the entry that has the attributes; layer -1: none has
}

// top is one more than the number of the topmost layer.
func (g *grow) top() int { return len(g.layers) - 1 }

// floor returns the lowest layer that adds to directory n, as far as the layers below number below have said so far. It
// can only rise.
func (n *name) floor(below int) int {
	f := 0
	for ; n != nil; n = n.parent {
		for i := range n.marks {
			m := &n.marks[i]
			switch {
			case m.layer >= below:
				continue
			case m.layer < f:
			case m.what&isFile != 0:
				f = m.layer + 1
			case m.what&(isWhiteout|isOpaque) != 0:
				f = m.layer
			}
		}
	}
	return f
}

// ended reports whether layers [from, to) will add nothing more anywhere.
func (g *grow) ended(from, to int) bool {
	for i := from; i < to; i++ {
		if !g.layers[i].ended || len(g.layers[i].pending) > 0 {
			return false
		}
	}
	return true
}

// look says what layers [floor, below) show at n, a child of a directory that they add to. ENOENT and errUncertain are
// its only errors.
func (g *grow) look(n *name, floor, below int) (seen, error) {
	s := seen{attrs: ref{layer: -1}}
	i, low := 0, floor
	for i < len(n.marks) && n.marks[i].layer >= below {
		i++
	}
	for l := below - 1; l >= floor; l-- {
		var m *mark
		if i < len(n.marks) && n.marks[i].layer == l {
			m = &n.marks[i]
			i++
		}
		if m != nil && m.object() {
			if m.what&isFile != 0 {
				if s.id != 0 {
					return s, nil
				}
				return g.lookFile(l, m)
			}
			if s.id == 0 {
				s.id, s.dir = m.id, true
				if n.parent == nil {
					s.id = Root
				}
			}
			if m.what&isDir != 0 {
				s.attrs = ref{l, m.entry}
				return s, nil
			}
		} else if !g.layers[l].ended {
			return s, errUncertain
		}
		if m != nil && m.what&isWhiteout != 0 {
			low = l
			break
		}
	}
	if s.id != 0 {
		return s, nil
	}
	if !g.ended(low, below) {
		return s, errUncertain
	}
	return s, syscall.ENOENT
}

// lookFile says what layer l's file shows: itself, or what it links to.
func (g *grow) lookFile(l int, m *mark) (seen, error) {
	r := ref{l, m.entry}
	if m.what&isLink != 0 {
		var err error
		if r, err = g.link(r, maxLinks); err != nil {
			return seen{}, err
		}
	}
	return seen{id: makeID(r.layer, r.entry), attrs: r}, nil
}

// rootShown reports whether lookRoot has the last word: a layer's own entry for the root comes first in its tar, so that one
// which has begun with something else has none. Should it come later, the kernel learns of it soon: the answer is provisional.
func (g *grow) rootShown() bool {
	for l := g.top() - 1; l >= 0; l-- {
		if m := g.root.mark(l); m != nil && m.what&isDir != 0 {
			return true
		}
		if len(g.layers[l].entries) == 0 && !g.layers[l].ended {
			return false
		}
	}
	return true
}

// lookRoot says what the root directory is, as far as that is known.
func (g *grow) lookRoot() seen {
	s := seen{id: Root, dir: true, attrs: ref{layer: -1}}
	for l := g.top() - 1; l >= 0; l-- {
		if m := g.root.mark(l); m != nil && m.what&isDir != 0 {
			s.attrs = ref{l, m.entry}
			return s
		}
	}
	return s
}

// name returns the name that id was given to, nil when it was given to none.
func (g *grow) name(id ID) *name {
	if id == Root {
		return g.root
	}
	l, e := split(id)
	if l < 0 || l >= len(g.layers) || int(e) >= len(g.layers[l].at) {
		return nil
	}
	return g.layers[l].at[e]
}

// markOf returns the directory's mark that gave out id, nil for none.
func (n *name) markOf(id ID) *mark {
	for i := range n.marks {
		if m := &n.marks[i]; m.id == id && m.dir() {
			return m
		}
	}
	return nil
}

// dirAt returns the directory that id names, ENOTDIR when it is something else and ESTALE when it is nothing.
func (g *grow) dirAt(id ID) (*name, error) {
	n := g.name(id)
	if n == nil {
		return nil, syscall.ESTALE
	}
	if n == g.root {
		return n, nil
	}
	if n.markOf(id) != nil {
		return n, nil
	}
	return nil, syscall.ENOTDIR
}

// lookup finds a child of directory dir.
func (g *grow) lookup(dir ID, s string) (seen, error) {
	d, err := g.dirAt(dir)
	if err != nil {
		return seen{}, err
	}
	floor := d.floor(g.top())
	n := d.kids[s]
	if n == nil {
		if !g.ended(floor, g.top()) {
			return seen{}, errUncertain
		}
		return seen{}, syscall.ENOENT
	}
	return g.look(n, floor, g.top())
}

// list returns directory n's children sorted by name. It needs g.mu for writing.
func (g *grow) list(n *name) ([]child, error) {
	if n.listed {
		return n.list, nil
	}
	floor := n.floor(g.top())
	if !g.ended(floor, g.top()) {
		return nil, errUncertain
	}
	list := make([]child, 0, len(n.kids))
	for _, k := range n.kids {
		s, err := g.look(k, floor, g.top())
		if errors.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, child{k, s.id, s.dir})
	}
	slices.SortFunc(list, func(a, b child) int { return strings.Compare(a.name.name, b.name.name) })
	n.list, n.listed = list, true
	return list, nil
}

// attr says what stat shows of id.
func (g *grow) attr(id ID) (Attr, error) {
	s, n, err := g.seen(id)
	if err != nil {
		return Attr{}, err
	}
	return g.seenAttr(s, n), nil
}

// seen says what an id that was handed out stands for.
func (g *grow) seen(id ID) (seen, *name, error) {
	n := g.name(id)
	if n == nil {
		return seen{}, nil, syscall.ESTALE
	}
	if n == g.root {
		return g.lookRoot(), n, nil
	}
	if n.markOf(id) != nil {
		s, err := g.look(n, n.parent.floor(g.top()), g.top())
		if err == nil && !s.dir {
			err = syscall.ESTALE
		}
		return s, n, err
	}
	l, e := split(id)
	if k := &g.layers[l].entries[e]; k.Kind != layer.Plain || k.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return seen{}, nil, syscall.ESTALE
	}
	return seen{id: id, attrs: ref{l, e}}, n, nil
}

// seenAttr makes the attributes of s, which n is a name of.
func (g *grow) seenAttr(s seen, n *name) Attr {
	a := Attr{Mode: syscall.S_IFDIR | 0o755, Nlink: 1, Provisional: true, Implied: s.attrs.layer < 0}
	if s.attrs.layer >= 0 {
		e := &g.layers[s.attrs.layer].entries[s.attrs.entry]
		a.Mode, a.UID, a.GID, a.Mtime = e.Mode, e.UID, e.GID, e.Mtime
		a.Rdev, a.Size = e.Rdev, e.Size
	}
	if s.dir {
		a.Size, a.Rdev = dirSize, 0
		if n.listed {
			a.Nlink = 2
			for i := range n.list {
				if n.list[i].dir {
					a.Nlink++
				}
			}
		}
		return a
	}
	tidy(&a, len(g.layers[s.attrs.layer].entries[s.attrs.entry].Linkname))
	return a
}

// tidy makes a file's size and device number agree with its type, whatever the layer says.
func tidy(a *Attr, linkname int) {
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		a.Rdev, a.Size = 0, max(a.Size, 0)
	case syscall.S_IFLNK:
		a.Rdev, a.Size = 0, int64(linkname)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		a.Size = 0
	default:
		a.Rdev, a.Size = 0, 0
	}
}

// entry returns the entry whose attributes, target and xattrs id has; nil for a directory that no layer describes.
func (g *grow) entry(id ID) (*layer.Entry, error) {
	s, _, err := g.seen(id)
	if err != nil || s.attrs.layer < 0 {
		return nil, err
	}
	return &g.layers[s.attrs.layer].entries[s.attrs.entry], nil
}
