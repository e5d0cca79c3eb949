package fs

import (
	"fmt"
	"strings"
	"sync"
	"syscall"

	"github.com/microsandbox/msb-fs/layer"
)

// Bounds on what a layer may name, Linux's own.
const (
	maxName = 255
	maxPath = 4096
)

// grow is the tree while its layers stream: every path that a layer mentions, with what each layer says about it.
type grow struct {
	mu      sync.RWMutex
	changed chan struct{} // closed and replaced whenever something was added
	layers  []growLayer
	root    *name
	err     error // why the tree can answer no more
	xattrs  bool  // some file has one
}

// growLayer is one layer of a growing tree, guarded by grow.mu.
type growLayer struct {
	entries []layer.Entry
	at      []*name        // by entry number; nil where the entry was refused
	links   map[uint32]ref // hard links whose target was there when they came
	ended   bool
}

// ref is an entry of a layer.
type ref struct {
	layer int
	entry uint32
}

// name is a path that at least one layer mentions, guarded by grow.mu.
type name struct {
	parent *name
	name   string
	kids   map[string]*name
	marks  []mark // topmost layer first, at most one of each
	list   []child
	listed bool // list is final: no layer can add to it any more
}

// mark is what one layer says about a path.
type mark struct {
	layer int
	what  what
	entry uint32  // of the object: where its attributes are
	first uint32  // of the object: the entry that gives it its ID
	kids  []*name // marked by the same layer below
}

// what a layer says about a path, a set.
type what uint8

const (
	isFile     what = 1 << iota // anything but a directory
	isLink                      // with isFile: another name of a file
	isDir                       // a directory with attributes
	isImplicit                  // a directory that must be there for what is below it
	isSolid                     // with isImplicit: something is below it
	isWhiteout                  // hides lower layers' object
	isOpaque                    // hides what lower layers have below
)

// object reports whether the layer has something at the path, hiding whatever lower layers have or merging with it.
func (m *mark) object() bool {
	return m.what&(isFile|isDir) != 0 || m.what&(isImplicit|isSolid) == isImplicit|isSolid
}

func (m *mark) dir() bool { return m.what&(isDir|isImplicit) != 0 }

func newGrow(layers int) *grow {
	return &grow{changed: make(chan struct{}), layers: make([]growLayer, layers), root: &name{}}
}

// mark returns what layer l says about n, nil when nothing.
func (n *name) mark(l int) *mark {
	for i := range n.marks {
		if n.marks[i].layer == l {
			return &n.marks[i]
		}
	}
	return nil
}

// addMark returns layer l's mark of n, a new one where there was none.
func (n *name) addMark(l int) *mark {
	i := 0
	for ; i < len(n.marks) && n.marks[i].layer >= l; i++ {
		if n.marks[i].layer == l {
			return &n.marks[i]
		}
	}
	n.marks = append(n.marks, mark{})
	copy(n.marks[i+1:], n.marks[i:])
	n.marks[i] = mark{layer: l}
	if n.parent != nil {
		if p := n.parent.mark(l); p != nil {
			p.kids = append(p.kids, n)
		}
	}
	return &n.marks[i]
}

func (n *name) dropMark(l int) {
	for i := range n.marks {
		if n.marks[i].layer == l {
			n.marks = append(n.marks[:i], n.marks[i+1:]...)
			return
		}
	}
}

func (n *name) kid(s string) *name {
	k := n.kids[s]
	if k == nil {
		k = &name{parent: n, name: s}
		if n.kids == nil {
			n.kids = make(map[string]*name)
		}
		n.kids[s] = k
	}
	return k
}

// add appends entries to layer l and wakes whoever waits.
func (g *grow) add(l int, es []layer.Entry) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	gl := &g.layers[l]
	if len(gl.entries)+len(es) > MaxEntries {
		return fmt.Errorf("layer %d: more than %d entries", l, MaxEntries)
	}
	for i := range es {
		gl.entries = append(gl.entries, es[i])
		gl.at = append(gl.at, nil)
		g.insert(l, uint32(len(gl.entries)-1))
	}
	g.wake()
	return nil
}

// end says that layer l will add nothing more.
func (g *grow) end(l int) {
	g.mu.Lock()
	g.layers[l].ended = true
	g.wake()
	g.mu.Unlock()
}

// fail turns every answer into EIO.
func (g *grow) fail(err error) {
	g.mu.Lock()
	if g.err == nil {
		g.err = err
	}
	g.wake()
	g.mu.Unlock()
}

func (g *grow) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// insert enters an entry into the names. What no file system could hold is refused: it gets no name.
func (g *grow) insert(l int, entry uint32) {
	gl := &g.layers[l]
	e := &gl.entries[entry]
	n := g.place(l, e)
	if n == nil {
		return
	}
	m := n.addMark(l)
	switch e.Kind {
	case layer.Whiteout:
		if n.parent != nil {
			m.what |= isWhiteout
		}
		return
	case layer.Opaque:
		m.what |= isOpaque
		return
	case layer.Implicit:
		if m.what&(isFile|isDir|isImplicit) != 0 {
			gl.at[entry] = n
			return
		}
		m.what |= isImplicit
		m.entry, m.first = entry, entry
		gl.at[entry] = n
		return
	case layer.HardLink:
		if n.parent == nil {
			return
		}
		g.replace(n, m)
		m.what |= isFile | isLink
		if t, ok := g.linkNow(l, e.Linkname); ok {
			if gl.links == nil {
				gl.links = make(map[uint32]ref)
			}
			gl.links[entry] = t
		}
	case layer.Plain:
		g.xattrs = g.xattrs || len(e.Xattrs) > 0
		if e.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			if m.what&isFile != 0 { // which had removed a lower directory
				m.what = m.what&^(isFile|isLink) | isWhiteout
			}
			if !m.dir() {
				m.first = entry
			}
			m.what = m.what&^(isImplicit|isSolid) | isDir
			m.entry = entry
			gl.at[entry] = n
			g.solid(n.parent, l)
			return
		}
		if n.parent == nil { // a root that is no directory
			return
		}
		g.replace(n, m)
		m.what |= isFile
	default:
		return
	}
	m.entry, m.first = entry, entry
	gl.at[entry] = n
	g.solid(n.parent, l)
}

// place finds the name of an entry, nil where it can have none: a parent that the layer has not as a directory, a
// component that no kernel would take.
func (g *grow) place(l int, e *layer.Entry) *name {
	if len(e.Name) > maxPath || strings.IndexByte(e.Name, 0) >= 0 {
		return nil
	}
	n := g.root
	for rest, more := e.Name, e.Name != ""; more; {
		var s string
		s, rest, more = strings.Cut(rest, "/")
		if s == "" || s == "." || s == ".." || len(s) > maxName {
			return nil
		}
		if n.parent != nil {
			if m := n.mark(l); m == nil || !m.dir() {
				return nil
			}
		} else {
			n.addMark(l)
		}
		n = n.kid(s)
	}
	return n
}

// replace makes room for something that is no directory at n: what the layer had below is gone.
func (g *grow) replace(n *name, m *mark) {
	if m.dir() {
		kids := m.kids
		for len(kids) > 0 {
			k := kids[len(kids)-1]
			kids = kids[:len(kids)-1]
			if km := k.mark(m.layer); km != nil {
				kids = append(kids, km.kids...)
				k.dropMark(m.layer)
			}
		}
		m.kids = nil
	}
	m.what &^= isDir | isImplicit | isSolid | isLink
}

// solid notes that layer l has something below n, so that the directories leading there exist.
func (g *grow) solid(n *name, l int) {
	for ; n != nil; n = n.parent {
		m := n.mark(l)
		if m == nil || m.what&isSolid != 0 || m.what&isDir != 0 {
			return
		}
		m.what |= isSolid
	}
}

// find returns the name at a path, nil where no layer mentions it.
func (g *grow) find(path string) *name {
	n := g.root
	for rest, more := path, path != ""; more && n != nil; {
		var s string
		s, rest, more = strings.Cut(rest, "/")
		n = n.kids[s]
	}
	return n
}

func (n *name) path() string {
	var parts []string
	for ; n.parent != nil; n = n.parent {
		parts = append(parts, n.name)
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return "/" + strings.Join(parts, "/")
}
