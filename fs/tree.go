package fs

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/layer"
)

// Options are a tree's settings; the zero value works.
type Options struct {
	// File is where the sealed tree is kept. It is used when it is there and of this version, written when all layers
	// are complete otherwise, and may be lost at any time. It must be of these layers, so its name should hold the
	// manifest's digest. Empty: the sealed tree is kept in memory.
	File string
}

// Tree is a merged image. Its methods may be called concurrently. Every error they return is one that Errno knows; a
// method that has to wait returns ctx's error when ctx ends first.
type Tree struct {
	layers []Layer
	cache  Cache
	file   string

	flat   atomic.Pointer[flat] // the sealed tree, nil while growing
	grow   *grow                // nil when the tree was sealed from the start
	sealed chan struct{}        // closed once flat is set
	failed atomic.Pointer[error]

	ctx    context.Context // of the tree's own goroutines, ended by Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	fetches sync.Pool // of *fetch
	stats   stats
	ahead   ahead
	record  recorder
	demand  demand
}

// errClosed is what waits end with when the tree is closed under them.
var errClosed = fmt.Errorf("the tree is closed: %w", syscall.ESHUTDOWN)

// New returns the tree of an image's layers, bottom first, whose chunks are in c. It returns at once, also while layers
// stream; ctx is only for opening o.File. The layers and the cache stay the caller's and must outlive the tree.
func New(ctx context.Context, layers []Layer, c Cache, o Options) (*Tree, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(layers) > MaxLayers {
		return nil, fmt.Errorf("the image has %d layers: at most %d can be shown", len(layers), MaxLayers)
	}
	t := &Tree{layers: layers, cache: c, file: o.File, sealed: make(chan struct{})}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.stats.start = time.Now()
	t.demand.start = t.stats.start
	t.fetches.New = func() any { return t.newFetch() }
	if o.File != "" {
		if f, err := openFlat(o.File, len(layers)); err == nil {
			t.flat.Store(f)
			close(t.sealed)
			return t, nil
		}
	}
	t.grow = newGrow(len(layers))
	t.work.Add(1)
	go t.build()
	return t, nil
}

// build reads every layer's entries and then seals the tree.
func (t *Tree) build() {
	defer t.work.Done()
	var feeds sync.WaitGroup
	for i, l := range t.layers {
		feeds.Add(1)
		go func() {
			defer feeds.Done()
			if err := t.feed(i, l); err != nil {
				t.fail(fmt.Errorf("layer %d: %w", i, err))
			}
		}()
	}
	feeds.Wait()
	if t.Err() != nil || t.ctx.Err() != nil {
		return
	}
	f, err := seal(t.grow)
	if err != nil { // an image too big for the flat form stays as it is
		t.grow.mu.Lock()
		t.grow.unsealed = true
		t.grow.wake()
		t.grow.mu.Unlock()
		return
	}
	if t.file != "" {
		if err := f.save(t.file); err == nil {
			if mapped, err := openFlat(t.file, len(t.layers)); err == nil {
				f = mapped
			}
		}
	}
	t.flat.Store(f)
	close(t.sealed)
	t.grow.drop()
}

// feed enters one layer's entries as they come.
func (t *Tree) feed(i int, l Layer) error {
	for from := 0; ; {
		es, done, err := l.Entries(t.ctx, from)
		if err != nil {
			if t.ctx.Err() != nil {
				return nil
			}
			return err
		}
		from += len(es)
		for len(es) > 0 {
			n := min(len(es), feedBatch)
			if err := t.grow.add(i, es[:n]); err != nil {
				return err
			}
			es = es[n:]
		}
		if done {
			t.grow.end(i)
			return nil
		}
	}
}

// feedBatch bounds how many entries are entered at a time, so that readers get in between.
const feedBatch = 512

// fail turns the tree to EIO.
func (t *Tree) fail(err error) {
	t.failed.CompareAndSwap(nil, &err)
	t.grow.fail(err)
}

// drop frees what the sealed tree has replaced, and lets those who wait ask that one.
func (g *grow) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.root, g.err = &name{}, errSealed
	clear(g.layers)
	g.wake()
}

// errSealed sends a question that was put to the growing tree on to the sealed one.
const errSealed = constError("the tree has been sealed")

// Close ends what the tree does in the background and every wait. Nothing must use the tree afterwards.
func (t *Tree) Close() error {
	t.ahead.mu.Lock() // nothing new is begun under it
	t.cancel()
	t.ahead.mu.Unlock()
	t.work.Wait()
	return nil
}

// Sealed is closed once no answer can change any more.
func (t *Tree) Sealed() <-chan struct{} { return t.sealed }

// Err says why every answer has turned to EIO: a layer failed, as when its bytes are not those of its digest. It is nil
// while the tree works.
func (t *Tree) Err() error {
	if p := t.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// dead returns the error that every answer has turned to.
func (t *Tree) dead() error {
	if p := t.failed.Load(); p != nil {
		return fmt.Errorf("%w: %w", syscall.EIO, *p)
	}
	return nil
}

// wait puts a question to the growing tree until its answer is certain, or no layer that streams gets on. ask runs with grow.mu held, for writing if asked.
// It returns errSealed when the sealed tree is to be asked instead.
func (t *Tree) wait(ctx context.Context, write bool, ask func(*grow) error) error {
	g := t.grow
	for {
		if write {
			g.mu.Lock()
		} else {
			g.mu.RLock()
		}
		err := g.err
		switch {
		case err != nil:
		case g.complete && !g.unsealed:
			err = errUncertain // for a moment: the sealed tree knows what this one can only guess, such as link counts
		default:
			err = ask(g)
		}
		changed := g.changed
		if write {
			g.mu.Unlock()
		} else {
			g.mu.RUnlock()
		}
		if !errors.Is(err, errUncertain) {
			if err == nil || errors.Is(err, errSealed) {
				return err
			}
			if dead := t.dead(); dead != nil {
				return dead
			}
			return err
		}
		if err := t.trouble(); err != nil {
			return fmt.Errorf("%w: %w", syscall.EIO, err)
		}
		look := time.NewTimer(troubleEvery)
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			err = ctx.Err()
		case <-t.ctx.Done():
			err = errClosed
		}
		look.Stop()
		if !errors.Is(err, errUncertain) {
			return err
		}
	}
}

// troubleEvery is how often who waits for a stream looks whether that gets on.
const troubleEvery = time.Second

// trouble is why a layer that streams gets nothing for longer than anybody should wait; nil when all get on. It may pass.
func (t *Tree) trouble() error {
	for _, l := range t.layers {
		if l, ok := l.(interface{ Trouble() error }); ok {
			if err := l.Trouble(); err != nil {
				return err
			}
		}
	}
	return nil
}

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
		err = t.wait(ctx, false, func(g *grow) error {
			a, err = g.attr(id)
			return err
		})
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
