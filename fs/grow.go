package fs

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/layer"
)

// Bounds on what a layer may name, Linux's own.
const (
	maxName = 255
	maxPath = 4096
)

// grow is the tree while its layers stream: every path that a layer mentions, with what each layer says about it.
type grow struct {
	begun   time.Time // immutable
	mu      sync.RWMutex
	changed chan struct{} // closed and replaced whenever something was added
	layers  []growLayer   // one more than the image has: the last has the directories that nobody wrote down
	root    *name
	err     error // why the tree can answer no more

	complete bool // every layer has ended
	unsealed bool // and yet there will be no sealed tree
}

// growLayer is one layer of a growing tree, guarded by grow.mu.
type growLayer struct {
	entries []layer.Entry
	at      []*name          // by entry number; nil where the entry was refused
	links   map[uint32]ref   // hard links whose target was there when they came
	moved   map[*name]string // see move
	pending map[*name]bool   // see settle
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
	id    ID      // of the object: that of the first entry that made it
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
	isMoved                     // what the layer has below is elsewhere: see move
)

// object reports whether the layer has something at the path, hiding whatever lower layers have or merging with it.
func (m *mark) object() bool {
	return m.what&(isFile|isDir) != 0 || m.what&(isImplicit|isSolid) == isImplicit|isSolid
}

func (m *mark) dir() bool { return m.what&(isDir|isImplicit) != 0 }

func newGrow(layers int) *grow {
	return &grow{begun: time.Now(), changed: make(chan struct{}), layers: make([]growLayer, layers+1), root: &name{}}
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
	for up := l + 1; up < g.top(); up++ {
		for n := range g.layers[up].pending {
			g.settle(n, up)
		}
	}
	g.complete = g.ended(0, g.top())
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
	if len(e.Name) > maxPath || strings.IndexByte(e.Name, 0) >= 0 {
		return
	}
	n := g.place(l, e.Name, true)
	if n == nil {
		return
	}
	gl.at[entry] = n
	m := n.addMark(l)
	dir := e.Kind == layer.Plain && e.Mode&syscall.S_IFMT == syscall.S_IFDIR
	if n.parent == nil && !dir && e.Kind != layer.Opaque { // the root is nothing but a directory
		return
	}
	switch e.Kind {
	case layer.Whiteout:
		if m.what&isSolid != 0 { // the layer has something below already, so that the directory as such stays
			m.what |= isOpaque
		} else {
			m.what |= isWhiteout
		}
		return
	case layer.Opaque:
		if m.what&isMoved == 0 {
			m.what |= isOpaque
		}
		return
	case layer.Implicit:
		if m.what&(isFile|isDir|isImplicit|isMoved) == 0 {
			g.imply(n, m, makeID(l, entry))
		}
		return
	case layer.HardLink:
		g.replace(n, m)
		m.what |= isFile | isLink
		if t, ok := g.linkNow(l, e.Linkname); ok {
			if gl.links == nil {
				gl.links = make(map[uint32]ref)
			}
			gl.links[entry] = t
		}
		m.id = makeID(l, entry)
	case layer.Plain:
		if !dir {
			g.replace(n, m)
			m.what |= isFile
			m.id = makeID(l, entry)
			break
		}
		if m.what&isFile != 0 { // which had removed a lower directory
			m.what = m.what&^(isFile|isLink) | isWhiteout
		}
		if !m.dir() {
			m.id = makeID(l, entry)
		}
		m.what = m.what&^(isImplicit|isSolid|isMoved) | isDir
		delete(gl.pending, n)
	default:
		return
	}
	m.entry = entry
	g.solid(n.parent, l)
	for i := 0; i < len(n.marks); i++ { // those above may have waited for this
		if up := n.marks[i].layer; up > l && n.marks[i].what&isImplicit != 0 {
			g.settle(n, up)
		}
	}
}

// place finds the name at a path of layer l, as unpacking it would: symbolic links on the way are followed, inside the
// root. It is nil where there can be none: below what is no directory, or called what no kernel would take. With make
// the directories that only such links lead to are made.
func (g *grow) place(l int, path string, make bool) *name {
	n := g.root
	if make {
		n.addMark(l)
	}
	for links := 0; path != ""; {
		part, rest, more := strings.Cut(path, "/")
		path = rest
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			if n.parent != nil {
				n = n.parent
			}
			continue
		case len(part) > maxName:
			return nil
		}
		k := n.kids[part]
		if k == nil {
			if !make {
				return nil
			}
			k = n.kid(part)
		}
		if !more {
			return k
		}
		m := k.mark(l)
		if m == nil || m.what&(isFile|isDir|isImplicit|isMoved) == 0 {
			if !make {
				n = k
				continue
			}
			if m = g.makeDir(k, l); m == nil {
				return nil
			}
		}
		switch {
		case m.dir():
			n = k
		default:
			target, ok := g.leads(k, m)
			if links++; !ok || links > maxSymlinks || len(target)+len(path) > maxPath {
				return nil
			}
			if target[0] == '/' {
				n = g.root
			}
			path = target + "/" + path
		}
	}
	return n
}

// makeDir makes a directory of layer l that nobody wrote down, and returns its mark; nil when there are too many.
func (g *grow) makeDir(n *name, l int) *mark {
	own := &g.layers[g.top()]
	if len(own.at) >= MaxEntries {
		return nil
	}
	own.at = append(own.at, n)
	own.entries = append(own.entries, layer.Entry{Kind: layer.Implicit})
	g.imply(n, n.addMark(l), makeID(g.top(), uint32(len(own.at)-1)))
	return n.mark(l)
}

// replace makes room for something that is no directory at n: what the layer had below is gone.
func (g *grow) replace(n *name, m *mark) {
	g.clear(m)
	m.what &^= isDir | isImplicit | isSolid | isLink | isMoved
	delete(g.layers[m.layer].pending, n)
}

// clear drops all that m's layer has below m.
func (g *grow) clear(m *mark) {
	kids := m.kids
	m.kids = nil
	for len(kids) > 0 {
		k := kids[len(kids)-1]
		kids = kids[:len(kids)-1]
		if km := k.mark(m.layer); km != nil {
			kids = append(kids, km.kids...)
			k.dropMark(m.layer)
			delete(g.layers[m.layer].pending, k)
		}
	}
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
