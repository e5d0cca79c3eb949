package fs

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/layer"
)

// Lookup finds the child called name of directory parent. It waits while a layer that could change the answer streams.
// The error of a name that is not there is ENOENT.
func (t *Tree) Lookup(ctx context.Context, parent ID, name string) (ID, Attr, error) {
	f := t.flat.Load()
	if f == nil {
		id, a, err := t.growLookup(ctx, parent, name)
		if !errors.Is(err, errSealed) {
			return id, a, err
		}
		f = t.flat.Load()
	}
	n, err := f.lookup(parent, name)
	if err != nil {
		return 0, Attr{}, err
	}
	id, a := ID(n.ID), n.attr()
	if n == f.node(rootNode) {
		id = Root
	}
	runtime.KeepAlive(f)
	return id, a, nil
}

// lookup finds a child's node.
func (t *flat) lookup(parent ID, name string) (*flatNode, error) {
	dir := t.get(parent)
	if dir == nil {
		return nil, syscall.ESTALE
	}
	if !dir.isDir() {
		return nil, syscall.ENOTDIR
	}
	n := t.child(dir, name)
	if n == nil {
		return nil, syscall.ENOENT
	}
	return n, nil
}

func (t *Tree) growLookup(ctx context.Context, parent ID, s string) (id ID, a Attr, err error) {
	stall := t.stats.begin()
	err = t.wait(ctx, false, func(g *grow) error {
		v, err := g.lookup(parent, s)
		if err != nil {
			return err
		}
		id = v.id
		n := g.name(parent).kids[s]
		a = g.seenAttr(v, n)
		return nil
	})
	t.stats.end(stall, parent, s)
	return id, a, err
}

// Attr returns the attributes of a file.
func (t *Tree) Attr(ctx context.Context, id ID) (a Attr, err error) {
	f := t.flat.Load()
	if f == nil {
		if id == Root {
			a, err = t.rootAttr(ctx)
		} else {
			err = t.wait(ctx, false, func(g *grow) error {
				a, err = g.attr(id)
				return err
			})
		}
		if !errors.Is(err, errSealed) {
			return a, err
		}
		f = t.flat.Load()
	}
	n := f.get(id)
	if n == nil {
		return Attr{}, syscall.ESTALE
	}
	a = n.attr()
	runtime.KeepAlive(f)
	return a, nil
}

// rootPatience is how long after its beginning a tree waits, when it is asked for the root's attributes, for layers that have
// not begun: they are asked for on every path, and what matters of them is seldom more than that it is a directory.
const rootPatience = time.Second

// rootAttr is Attr of the root of a growing tree.
func (t *Tree) rootAttr(ctx context.Context) (a Attr, err error) {
	rctx, stop := context.WithDeadline(ctx, t.grow.begun.Add(rootPatience))
	defer stop()
	err = t.wait(rctx, false, func(g *grow) error {
		if a, err = g.attr(Root); err == nil && !g.rootShown() && t.trouble() == nil {
			return errUncertain
		}
		return err
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = nil
	}
	return a, err
}

// ReadDir calls fn for the children of directory id, sorted by name, from the from'th on, until fn returns false. "." and
// ".." are not among them. It waits until every layer that could add to the directory has ended.
func (t *Tree) ReadDir(ctx context.Context, id ID, from int, fn func(name string, id ID, a Attr) bool) error {
	return t.readDir(ctx, id, from, func(_ int, name string, id ID, a Attr) bool {
		return fn(strings.Clone(name), id, a)
	})
}

// readDir is ReadDir with each child's ordinal, and names that fn may not keep.
func (t *Tree) readDir(ctx context.Context, id ID, from int, fn func(i int, name string, id ID, a Attr) bool) error {
	f := t.flat.Load()
	if f == nil {
		list, err := t.growList(ctx, id)
		if !errors.Is(err, errSealed) {
			for i := max(from, 0); err == nil && i < len(list); i++ {
				if !fn(i, list[i].name, list[i].id, list[i].attr) {
					break
				}
			}
			return err
		}
		f = t.flat.Load()
	}
	dir := f.get(id)
	if dir == nil {
		return syscall.ESTALE
	}
	if !dir.isDir() {
		return syscall.ENOTDIR
	}
	es := f.children(dir)
	for i := max(from, 0); i < len(es); i++ {
		n := f.node(es[i].Node)
		if n == nil {
			continue
		}
		if !fn(i, f.str(es[i].Name, es[i].NameLen), ID(n.ID), n.attr()) {
			break
		}
	}
	runtime.KeepAlive(f)
	return nil
}

// listed is a child as a growing tree lists it.
type listed struct {
	name string
	id   ID
	attr Attr
}

func (t *Tree) growList(ctx context.Context, id ID) (list []listed, err error) {
	stall := t.stats.begin()
	err = t.wait(ctx, true, func(g *grow) error {
		n, err := g.dirAt(id)
		if err != nil {
			return err
		}
		children, err := g.list(n)
		if err != nil {
			return err
		}
		list = make([]listed, 0, len(children))
		floor := n.floor(g.top())
		for _, c := range children {
			v, err := g.look(c.name, floor, g.top())
			if err != nil {
				return err
			}
			list = append(list, listed{c.name.name, v.id, g.seenAttr(v, c.name)})
		}
		return nil
	})
	t.stats.end(stall, id, "")
	return list, err
}

// Parent returns the directory that has id's first name, Root for Root and 0 for what the tree does not show.
func (t *Tree) Parent(id ID) ID {
	if id == Root {
		return Root
	}
	f := t.flat.Load()
	if f == nil {
		var parent ID
		err := t.wait(t.ctx, false, func(g *grow) error {
			parent = g.parent(id)
			return nil
		})
		if !errors.Is(err, errSealed) {
			return parent
		}
		f = t.flat.Load()
	}
	n := f.get(id)
	if n == nil {
		return 0
	}
	p := n.Parent
	var parent ID
	if p == rootNode {
		parent = Root
	} else if d := f.node(p); d != nil {
		parent = ID(d.ID)
	}
	runtime.KeepAlive(f)
	return parent
}

// parent returns the ID of the directory that id's name is in.
func (g *grow) parent(id ID) ID {
	n := g.name(id)
	if n == nil || n.parent == nil {
		return 0
	}
	if n.parent == g.root {
		return Root
	}
	s, err := g.look(n.parent, n.parent.parent.floor(g.top()), g.top())
	if err != nil && !errors.Is(err, errUncertain) {
		return 0
	}
	return s.id
}

// growEntry runs fn with the entry that has id's target and xattrs; nil where no layer describes a directory.
func (t *Tree) growEntry(ctx context.Context, id ID, fn func(*layer.Entry) error) error {
	return t.wait(ctx, false, func(g *grow) error {
		e, err := g.entry(id)
		if err != nil {
			return err
		}
		return fn(e)
	})
}

// Readlink returns what a symlink points to.
func (t *Tree) Readlink(ctx context.Context, id ID) (target string, err error) {
	f := t.flat.Load()
	if f == nil {
		err = t.growEntry(ctx, id, func(e *layer.Entry) error {
			if e == nil || e.Mode&syscall.S_IFMT != syscall.S_IFLNK {
				return syscall.EINVAL
			}
			target = e.Linkname
			return nil
		})
		if !errors.Is(err, errSealed) {
			return target, err
		}
		f = t.flat.Load()
	}
	n := f.get(id)
	if n == nil {
		return "", syscall.ESTALE
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		return "", syscall.EINVAL
	}
	target = strings.Clone(f.target(n))
	runtime.KeepAlive(f)
	return target, nil
}

// Path returns one of id's names, for people to read; "" for what the tree does not show.
func (t *Tree) Path(id ID) string {
	f := t.flat.Load()
	if f == nil {
		var p string
		err := t.wait(t.ctx, false, func(g *grow) error {
			if n := g.name(id); n != nil {
				p = n.path()
			}
			return nil
		})
		if !errors.Is(err, errSealed) {
			return p
		}
		f = t.flat.Load()
	}
	i := f.nodeOf(id)
	if i == 0 {
		return ""
	}
	p := f.path(i)
	runtime.KeepAlive(f)
	return p
}
