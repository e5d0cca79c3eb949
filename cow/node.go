package cow

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// node is a file that the kernel knows, or that is a parent of one.
type node struct {
	id    uint64 // FUSE's node id; immutable
	lower uint64 // of a directory what it is merged with, of a file what it was copied up from; 0 = nothing; immutable
	kind  uint32 // S_IFMT bits; immutable

	up atomic.Bool // is in the upper, at its place; set once, with FS.tree locked

	// Guarded by FS.tree.
	parent *node    // directory of one name that the file has; nil of the root and of what has no name
	name   string   // in parent
	more   []dentry // further names that are known
	gone   bool     // has no name any more
	over   *override
	links  *linkCount
	acl    bool // has an access ACL
	defacl bool // has a default ACL
	caps   bool // has capabilities, to be dropped when written to
	dir    *dirState
	last   *unix.Stat_t // of a directory that is gone: what it was

	mu   sync.RWMutex
	data *content // how much of it is still the lower's; nil = nothing; the pointer is immutable once up is set

	handle *handle // guarded by handles.mu

	// Guarded by quota.mu.
	measured bool
	counted  int64 // bytes that the quota counts for it

	// Guarded by FS.tableMu.
	lookups uint64
	kids    int // nodes whose parent this is
}

// dentry is a name that a file has.
type dentry struct {
	parent *node
	name   string
}

// dirState is what is known of a directory in the upper. Guarded by FS.tree.
type dirState struct {
	counted bool // links is known
	links   int  // st_nlink of a merged directory
	changes uint64
}

// ino is the st_ino of a node id. Ids of directories that were removed but are still known keep their number; a new file
// that got their host inode has the bits above as well.
func ino(id uint64) uint64 { return id &^ (0xff << aliasShift) }

const aliasShift = 55

// node returns the node of an id that the kernel sent.
func (f *FS) node(id uint64) (*node, error) {
	f.tableMu.Lock()
	defer f.tableMu.Unlock()
	if n := f.table[id]; n != nil {
		return n, nil
	}
	return nil, unix.ESTALE
}

// find returns the live node of an id, or the node id that a new one would get. tableMu is held.
func (f *FS) find(id uint64) (n *node, free uint64) {
	for free = id; ; free += 1 << aliasShift {
		n = f.table[free]
		if n == nil || !n.gone || n.kind != unix.S_IFDIR {
			return n, free
		}
	}
}

var errTwice = errors.New("upper has one directory at two places")

// attach returns the node of child c, called name in p, and counts one lookup of the kernel's. tree is held, at least for
// reading.
func (f *FS) attach(c *child, p *node, s string) (*node, error) {
	f.tableMu.Lock()
	defer f.tableMu.Unlock()
	n, id := f.find(c.id)
	if n == nil {
		n = f.newNode(c, id)
		n.parent, n.name = p, s
		p.kids++
		f.table[id] = n
	} else if n.kind != c.mode()&unix.S_IFMT {
		return nil, unix.EIO
	} else if !n.named(p, s) {
		if n.kind == unix.S_IFDIR {
			return nil, errors.Join(errTwice, unix.EIO)
		}
		n.more = append(n.more, dentry{p, s})
		p.kids++
	}
	n.lookups++
	return n, nil
}

// newNode makes the node of a child, without a place. tableMu is held.
func (f *FS) newNode(c *child, id uint64) *node {
	n := &node{id: id, lower: c.lower, kind: c.mode() & unix.S_IFMT}
	if !c.upper {
		return n
	}
	n.setMeta(&c.meta)
	if n.kind == unix.S_IFREG && c.lower != 0 && c.meta.base > 0 {
		n.data = newContent(n, c.meta.base)
	}
	n.up.Store(true)
	return n
}

func (n *node) setMeta(m *meta) {
	n.over, n.links, n.acl, n.defacl, n.caps = m.over, m.links, m.acl, m.defacl, m.caps
	if n.kind == unix.S_IFDIR {
		n.dir = new(dirState)
	}
}

func (n *node) named(p *node, s string) bool {
	if n.parent == p && n.name == s {
		return true
	}
	for _, m := range n.more {
		if m.parent == p && m.name == s {
			return true
		}
	}
	return false
}

// renamed exchanges one name of n for another. tree is locked.
func (f *FS) renamed(n *node, from *node, oldName string, to *node, newName string) {
	f.tableMu.Lock()
	defer f.tableMu.Unlock()
	to.kids++
	if n.parent == from && n.name == oldName {
		n.parent, n.name = to, newName
	} else {
		for i, m := range n.more {
			if m.parent == from && m.name == oldName {
				n.more[i] = dentry{to, newName}
			}
		}
	}
	f.unkid(from)
}

// unnamed takes one name from n and reports whether another is known. The last known one stays where it is. tree is locked.
func (f *FS) unnamed(n *node, p *node, s string) (another bool) {
	f.tableMu.Lock()
	defer f.tableMu.Unlock()
	switch {
	case len(n.more) == 0:
		return n.parent != p || n.name != s
	case n.parent == p && n.name == s:
		last := len(n.more) - 1
		n.parent, n.name = n.more[last].parent, n.more[last].name
		n.more = n.more[:last]
	default:
		i := 0
		for ; i < len(n.more); i++ {
			if n.more[i].parent == p && n.more[i].name == s {
				n.more = append(n.more[:i], n.more[i+1:]...)
				break
			}
		}
		if i > len(n.more) {
			return true
		}
	}
	f.unkid(p)
	return true
}

// move gives n, whose names are all gone, a place of its own under a private directory. tree is locked.
func (f *FS) move(n *node, to *node) {
	f.tableMu.Lock()
	defer f.tableMu.Unlock()
	if old := n.parent; old != nil {
		defer f.unkid(old)
	}
	n.parent, n.name = to, privateName(n.id)
	to.kids++
}

func privateName(id uint64) string { return strconv.FormatUint(id, 16) }

// Forget is the kernel giving up its references to a node.
func (f *FS) Forget(id, nlookup uint64) {
	f.tableMu.Lock()
	n := f.table[id]
	if n == nil || n == f.root {
		f.tableMu.Unlock()
		return
	}
	n.lookups -= min(n.lookups, nlookup)
	last := n.lookups == 0 && n.kids == 0
	f.tableMu.Unlock()
	if !last {
		return
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	f.tableMu.Lock()
	defer f.tableMu.Unlock()
	if n.lookups == 0 && n.kids == 0 && f.table[id] == n {
		f.discard(n)
	}
}

// discard takes a node out of the table, with its parents that nothing else keeps, and off the disk what has no name.
// tree and tableMu are locked.
func (f *FS) discard(n *node) {
	for n != nil && n != f.root && n.id != 0 && n.lookups == 0 && n.kids == 0 && f.table[n.id] == n {
		delete(f.table, n.id)
		f.handles.drop(n)
		f.listings.drop(n)
		if n.gone && n.up.Load() && n.kind != unix.S_IFDIR {
			f.reap(n)
		}
		for _, m := range n.more {
			f.unkid(m.parent)
		}
		n.more = nil
		if n.parent == nil {
			return
		}
		n.parent.kids--
		n = n.parent
	}
}

// unkid undoes one reference to a parent. tree and tableMu are locked.
func (f *FS) unkid(p *node) {
	p.kids--
	f.discard(p)
}

// reap deletes a file that has no name any more.
func (f *FS) reap(n *node) {
	if n.parent == &f.upper.orphans {
		p := place{f.upper.orphansHandle.fd, n.name}
		st, err := p.stat()
		if p.unlink() == nil && err == nil && st.Nlink == 1 {
			f.quota.removed(n, &st)
		}
	}
	if n.data != nil {
		f.handles.drop(&n.data.mapNode)
		place{f.upper.rangesHandle.fd, privateName(n.lower)}.unlink()
		f.quota.mapped(n.data, -1)
	}
}

// emptyOrphans deletes every file without a name. tree is locked.
func (f *FS) emptyOrphans() {
	f.tableMu.Lock()
	defer f.tableMu.Unlock()
	for _, n := range f.table {
		if n.gone && n.up.Load() && n.kind != unix.S_IFDIR {
			f.reap(n)
		}
		f.handles.drop(n)
	}
}

// at is where n is in the upper; the directory's descriptor stays open until done is called. tree is held, at least for
// reading.
func (f *FS) at(n *node) (p place, done func(), err error) {
	if n == f.root {
		return place{f.upper.top.fd, "."}, func() {}, nil
	}
	if n.parent == nil || n.gone && n.kind == unix.S_IFDIR {
		return place{}, nil, unix.ENOENT
	}
	if n.links != nil && !n.gone {
		return place{f.upper.indexHandle.fd, privateName(n.lower)}, func() {}, nil
	}
	h, err := f.dirHandle(n.parent)
	if err != nil {
		return place{}, nil, err
	}
	return place{h.fd, n.name}, func() { f.handles.release(h) }, nil
}

// in is the place called name in the upper directory p; see at.
func (f *FS) in(p *node, name string) (_ place, done func(), err error) {
	h, err := f.dirHandle(p)
	if err != nil {
		return place{}, nil, err
	}
	return place{h.fd, name}, func() { f.handles.release(h) }, nil
}

// dirHandle returns the descriptor of an upper directory, opening what is closed from the nearest open parent down. tree
// is held, at least for reading.
func (f *FS) dirHandle(n *node) (*handle, error) {
	if h := f.handles.get(n); h != nil {
		return h, nil
	}
	var closed []*node // n first
	var h *handle
	for d := n; h == nil; d = d.parent {
		if d == nil || d.gone {
			return nil, unix.ENOENT
		}
		if h = f.handles.get(d); h == nil {
			closed = append(closed, d)
		}
	}
	for i := len(closed) - 1; i >= 0; i-- {
		fd, err := place{h.fd, closed[i].name}.openDir()
		f.handles.release(h)
		if err != nil {
			return nil, err
		}
		h = f.handles.put(closed[i], fd)
	}
	return h, nil
}

// fileHandle returns a descriptor of a regular file in the upper, open for reading and writing.
func (f *FS) fileHandle(n *node) (*handle, error) {
	if h := f.handles.get(n); h != nil {
		return h, nil
	}
	f.tree.RLock()
	defer f.tree.RUnlock()
	return f.fileHandleLocked(n)
}

func (f *FS) fileHandleLocked(n *node) (*handle, error) {
	if h := f.handles.get(n); h != nil {
		return h, nil
	}
	p, done, err := f.at(n)
	if err != nil {
		return nil, err
	}
	defer done()
	fd, err := p.open(unix.O_RDWR|unix.O_NOATIME|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return f.handles.put(n, fd), nil
}
