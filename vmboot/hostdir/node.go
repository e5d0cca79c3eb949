package hostdir

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/openat"
)

// key is what makes a file of the host the same file, under whatever names. A number that the host uses again for a file of
// another kind is another file.
type key struct {
	dev, ino uint64
	kind     uint32 // S_IFMT bits
}

func keyOf(st *unix.Stat_t) key { return key{st.Dev, st.Ino, st.Mode & unix.S_IFMT} }

// node is a file that the guest has a number of, or a directory on the way to one.
type node struct {
	id   uint64 // never used again; immutable
	key  key    // immutable
	only *node  // the file of a root of one file; immutable

	// Guarded by FS.mu.
	fixed   int // O_PATH descriptor that stays open until Close; -1 of all but what was asked for
	recent  int // O_PATH descriptor, -1 of all but the latest that were looked up
	lookups uint64
	kids    int    // names in nodes' names whose dir this is
	names   []name // where it was seen, the latest last
	open    []*handle
}

// name is where a file was seen.
type name struct {
	dir  *node
	name string
}

// maxNames is how many names of a file are remembered. It is found by any of them that is still right.
const maxNames = 4

// newNode makes a node and enters it. mu is held, or nobody else knows f.
func (f *FS) newNode(st *unix.Stat_t) *node {
	n := &node{id: f.nextID, key: keyOf(st), fixed: -1, recent: -1}
	f.nextID++
	f.nodes[n.id] = n
	f.byKey[n.key] = n
	return n
}

func (f *FS) node(id uint64) (*node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[id]; n != nil {
		return n, nil
	}
	return nil, unix.ESTALE
}

// attach returns the node of st, which was seen as s in dir and which fd has open, and counts one lookup of the guest's. It takes
// fd over.
func (f *FS) attach(st *unix.Stat_t, dir *node, s string, fd int) (*node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.byKey[keyOf(st)]
	if n == nil {
		if len(f.nodes) >= maxNodes {
			unix.Close(fd)
			return nil, unix.ENOMEM
		}
		n = f.newNode(st)
	}
	n.lookups++
	f.named(n, dir, s)
	f.remember(n, fd)
	return n, nil
}

// remember keeps fd, which has n open, for a while: what a guest has just looked up it goes on to use, even if the file has
// lost that name meanwhile. Of directories nothing is kept: one that the host moves away is not below the root any more. It takes
// fd over. mu is held.
func (f *FS) remember(n *node, fd int) {
	if n.recent >= 0 || n.fixed >= 0 || n.key.kind == unix.S_IFDIR {
		unix.Close(fd)
		return
	}
	if old := f.recent[f.oldest]; old != nil {
		old.shut()
	}
	n.recent, f.recent[f.oldest] = fd, n
	f.oldest = (f.oldest + 1) % len(f.recent)
}

// shut closes what is kept of n. FS.mu is held.
func (n *node) shut() {
	if n.recent >= 0 {
		unix.Close(n.recent)
		n.recent = -1
	}
}

// named remembers that n is called s in dir. A directory has one name only. mu is held.
func (f *FS) named(n, dir *node, s string) {
	at := name{dir, s}
	switch {
	case len(n.names) > 0 && n.names[len(n.names)-1] == at, n == f.root:
		return
	case n.key.kind == unix.S_IFDIR:
		f.unnamed(n, n.names...)
	default:
		f.unnamed(n, at)
		if len(n.names) == maxNames {
			f.unnamed(n, n.names[0])
		}
	}
	n.names = append(n.names, at)
	dir.kids++
}

// unnamed forgets names of n. mu is held.
func (f *FS) unnamed(n *node, gone ...name) {
	for _, g := range slices.Clone(gone) {
		if i := slices.Index(n.names, g); i >= 0 {
			n.names = slices.Delete(n.names, i, i+1)
			g.dir.kids--
			f.discard(g.dir)
		}
	}
}

// discard takes n out of the tables if nobody refers to it any more. mu is held.
func (f *FS) discard(n *node) {
	if n.lookups > 0 || n.kids > 0 || n.fixed >= 0 || n == f.root || f.nodes[n.id] != n {
		return
	}
	delete(f.nodes, n.id)
	n.shut()
	if f.byKey[n.key] == n {
		delete(f.byKey, n.key)
	}
	f.unnamed(n, n.names...)
}

// Forget is the guest giving up a number that it was told nlookup times.
func (f *FS) Forget(id, nlookup uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[id]; n != nil {
		n.lookups -= min(n.lookups, nlookup)
		f.discard(n)
	}
}

// moved tells that what key names was called from and is called to.
func (f *FS) moved(k key, from, to name) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.byKey[k]; n != nil {
		f.named(n, to.dir, to.name)
		f.unnamed(n, from)
	}
}

// path returns an O_PATH descriptor of n, or another if it is open already, which the caller closes. A file that the host
// has moved away or deleted meanwhile is ESTALE, whereupon the guest looks it up again.
func (f *FS) path(n *node) (int, error) {
	f.mu.Lock()
	if n.fixed >= 0 {
		defer f.mu.Unlock()
		return dup(n.fixed)
	}
	if n.recent >= 0 {
		defer f.mu.Unlock()
		return dup(n.recent)
	}
	if len(n.open) > 0 {
		defer f.mu.Unlock()
		return dup(n.open[0].fd)
	}
	var paths []string
	for _, at := range slices.Backward(n.names) {
		if p, ok := f.below(at); ok {
			paths = append(paths, p)
		}
	}
	f.mu.Unlock()
	for _, p := range paths {
		fd, err := f.openBelow(p)
		switch err {
		case nil:
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err == nil && keyOf(&st) == n.key {
				return fd, nil
			}
			unix.Close(fd)
		case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV:
		default:
			return -1, err
		}
	}
	return -1, unix.ESTALE
}

func dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

// maxDepth is how many directories deep a path may be. What nodes know of the past may even be a circle.
const maxDepth = 4096

// below returns at as a path below the root. mu is held.
func (f *FS) below(at name) (string, bool) {
	var parts []string
	for ; len(parts) < maxDepth; at = at.dir.names[len(at.dir.names)-1] {
		parts = append(parts, at.name)
		if at.dir == f.root {
			slices.Reverse(parts)
			return strings.Join(parts, "/"), true
		}
		if len(at.dir.names) == 0 {
			break
		}
	}
	return "", false
}

// openBelow opens a path below the root, in steps where it is longer than PATH_MAX lets the kernel take.
func (f *FS) openBelow(path string) (fd int, err error) {
	const most = unix.PathMax - 1
	dir := f.root.fixed
	for {
		step := path
		if len(step) > most {
			step = step[:strings.LastIndexByte(step[:most], '/')]
		}
		fd, err = openat.Open(dir, step, unix.O_PATH, 0)
		if dir != f.root.fixed {
			unix.Close(dir)
		}
		if err != nil || len(step) == len(path) {
			return fd, err
		}
		dir, path = fd, path[len(step)+1:]
	}
}
