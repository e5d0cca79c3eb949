package cow

import (
	"context"
	"errors"
	"iter"
	"path"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
)

// ChangeKind says how a path differs from the lower.
type ChangeKind string

const (
	Added   ChangeKind = "added"
	Changed ChangeKind = "changed"
	Deleted ChangeKind = "deleted"
)

// Change is one path that differs from the lower.
type Change struct {
	Path string // without a leading slash; "" is the root
	Kind ChangeKind
}

// Diff yields what differs from the lower, sorted by path component. A deleted directory is one change; so is a directory
// that replaced another, with Deleted before what is in it now. It looks at the upper, and at the lower only where that
// leads. Changes made meanwhile may be seen or not.
func (f *FS) Diff(ctx context.Context) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for c, err := range f.changes(ctx) {
			if !yield(Change{c.path, c.kind}, err) || err != nil {
				return
			}
		}
	}
}

// change is a Change with what it is now.
type change struct {
	path string
	kind ChangeKind
	n    *node // held until the next change; nil when deleted
	// opaque says of a directory that what the lower has in it is gone.
	opaque bool
}

var errStop = errors.New("stop")

func (f *FS) changes(ctx context.Context) iter.Seq2[change, error] {
	return func(yield func(change, error) bool) {
		d := differ{f: f, ctx: ctx, yield: yield}
		err := d.linked()
		if err == nil {
			err = d.root()
		}
		if err != nil && err != errStop {
			yield(change{}, err)
		}
	}
}

// differ walks the upper.
type differ struct {
	f     *FS
	ctx   context.Context
	yield func(change, error) bool
	// touched are the directories of the lower to look into although they are not in the upper, for names of files that
	// were changed by another of their names; and of those names, by lower directory.
	touched map[uint64]bool
}

func (d *differ) report(c change) error {
	if !d.yield(c, nil) {
		return errStop
	}
	return d.ctx.Err()
}

// linked finds the lower's directories that have names of changed files which have several.
func (d *differ) linked() error {
	d.touched = make(map[uint64]bool)
	if !d.f.indexed.Load() {
		return nil
	}
	changed := make(map[string]bool)
	if err := eachName(d.f.upper.indexHandle.fd, func(name string, _ uint8) bool {
		changed[name] = true
		return true
	}); err != nil {
		return err
	}
	var visit func(id uint64) (bool, error)
	visit = func(id uint64) (found bool, err error) {
		var subs []uint64
		err = d.f.lower.ReadDir(d.ctx, id, 0, func(_ string, kid uint64, a fs.Attr) bool {
			if a.IsDir() {
				subs = append(subs, kid)
			} else if a.Nlink > 1 && changed[privateName(kid)] {
				found = true
			}
			return true
		})
		for _, s := range subs {
			if err != nil {
				break
			}
			var below bool
			below, err = visit(s)
			found = found || below
		}
		if found {
			d.touched[id] = true
		}
		return found, err
	}
	_, err := visit(fs.Root)
	return err
}

func (d *differ) root() error {
	if err := d.f.adoptRoot(d.ctx, true); err != nil {
		return err
	}
	same, err := d.same(d.f.root, fs.Root)
	if err != nil {
		return err
	}
	if !same {
		if err := d.report(change{path: "", kind: Changed, n: d.f.root}); err != nil {
			return err
		}
	}
	return d.dir("", d.f.root, fs.Root)
}

// dir reports what is in directory n, of which the lower has old at the same path (0 = none, or hidden).
func (d *differ) dir(at string, n *node, old uint64) error {
	names, err := d.names(n, old)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := d.name(path.Join(at, name), n, name, old); err != nil {
			return err
		}
	}
	return nil
}

// names are the names in n that may differ from old's, sorted.
func (d *differ) names(n *node, old uint64) ([]string, error) {
	set := make(map[string]bool)
	if n.up.Load() {
		d.f.tree.RLock()
		h, err := d.f.dirHandle(n)
		if err == nil {
			err = eachName(h.fd, func(name string, _ uint8) bool {
				if hidden, ok := strings.CutPrefix(name, whPrefix); ok {
					name = hidden
				}
				if validName(name) == nil {
					set[name] = true
				}
				return true
			})
			d.f.handles.release(h)
		}
		d.f.tree.RUnlock()
		if err != nil {
			return nil, err
		}
	}
	// Through a directory that came from elsewhere all of the lower's names are new; through one that did not, those
	// that lead to changed files.
	moved := n.lower != 0 && n.lower != old
	if moved || d.touched[n.lower] {
		if err := d.f.lower.ReadDir(d.ctx, n.lower, 0, func(name string, id uint64, a fs.Attr) bool {
			if moved || a.IsDir() && d.touched[id] || !a.IsDir() && a.Nlink > 1 {
				set[name] = true
			}
			return true
		}); err != nil {
			return nil, err
		}
	}
	if moved && old != 0 {
		if err := d.f.lower.ReadDir(d.ctx, old, 0, func(name string, _ uint64, _ fs.Attr) bool {
			set[name] = true
			return true
		}); err != nil {
			return nil, err
		}
	}
	names := make([]string, 0, len(set))
	for name := range set {
		names = append(names, name)
	}
	sort.Strings(names)
	return names, nil
}

// name reports on one name of directory p, and on what is below it.
func (d *differ) name(at string, p *node, name string, oldDir uint64) error {
	b := d.f.beneath(d.ctx, p, name)
	old := b
	if oldDir != p.lower {
		old = d.f.beneath(d.ctx, &node{kind: unix.S_IFDIR, lower: oldDir}, name)
	}
	if old.err != nil {
		return old.err
	}
	d.f.tree.Lock()
	_, n, err := d.f.held(p, name, &b)
	d.f.tree.Unlock()
	if err == unix.ENOENT {
		if old.id == 0 {
			return nil
		}
		return d.report(change{path: at, kind: Deleted})
	}
	if err != nil {
		return err
	}
	defer func() {
		d.f.tree.Lock()
		defer d.f.tree.Unlock()
		d.f.drop(n)
	}()
	c := change{path: at, kind: Added, n: n}
	oldIsDir := old.id != 0 && old.attr.IsDir()
	switch {
	case old.id != 0 && n.kind == old.attr.Mode&unix.S_IFMT && (n.kind != unix.S_IFDIR || n.lower == old.id):
		same, err := d.same(n, old.id)
		if err != nil {
			return err
		}
		c.kind = Changed
		if same {
			c.kind = ""
		}
	case old.id != 0 && n.kind == unix.S_IFDIR && oldIsDir:
		c.kind, c.opaque = Changed, true
		old.id = 0
	case old.id != 0:
		// Something of another type: first the one goes, then the other comes.
		if err := d.report(change{path: at, kind: Deleted}); err != nil {
			return err
		}
		old.id = 0
	}
	if c.kind == Added {
		if own, err := d.mountPoint(n); err != nil {
			return err
		} else if own {
			c.kind = ""
		}
	}
	if c.kind != "" {
		if err := d.report(c); err != nil {
			return err
		}
	}
	if n.kind != unix.S_IFDIR {
		return nil
	}
	return d.dir(at, n, old.id)
}

// mountPointXattr is what the agent of a microVM sets on a directory or file that it had to make to mount on: nothing that
// the sandbox's programs have changed.
const mountPointXattr = "user.msbfs.mountpoint"

// mountPoint reports whether n is there only to be mounted on. What was put into it counts all the same.
func (d *differ) mountPoint(n *node) (bool, error) {
	if n.kind != unix.S_IFDIR && n.kind != unix.S_IFREG || !n.up.Load() {
		return false, nil
	}
	if _, err := d.f.xattrValue(d.ctx, n, mountPointXattr); err != nil {
		if err == unix.ENODATA {
			err = nil
		}
		return false, err
	}
	if n.kind == unix.S_IFDIR {
		return true, nil
	}
	_, st, err := d.looks(n)
	return err == nil && st.Size == 0, err
}

// same reports whether n shows nothing but what the lower's file of that id does.
func (d *differ) same(n *node, id uint64) (bool, error) {
	if !n.up.Load() {
		return n.lower == id, nil
	}
	if n.lower != id {
		return false, nil
	}
	a, err := d.f.lower.Attr(d.ctx, id)
	if err != nil {
		return false, err
	}
	l, st, err := d.looks(n)
	if n.kind != unix.S_IFDIR && (n.links != nil || st.Nlink > 1) {
		// Only because of its names is it here, perhaps. But a layer can link to nothing outside itself, so all are told.
		return false, err
	}
	if err != nil || l != (looks{a.Mode, a.UID, a.GID, l.rdev}) || st.Mtim.Sec != a.Mtime.Sec || uint32(st.Mtim.Nsec) != a.Mtime.Nsec {
		return false, err
	}
	if n.kind == unix.S_IFREG && a.Size > 0 {
		if n.data == nil || st.Size != a.Size {
			return false, nil
		}
		if own, err := d.ownsAny(n, a.Size); own || err != nil {
			return false, err
		}
	}
	return d.sameXattrs(n, id)
}

func (d *differ) looks(n *node) (l looks, st unix.Stat_t, err error) {
	d.f.tree.RLock()
	defer d.f.tree.RUnlock()
	p, done, err := d.f.at(n)
	if err != nil {
		return l, st, err
	}
	defer done()
	if st, err = p.stat(); err == nil {
		l, err = d.f.looksLike(n, p)
	}
	return l, st, err
}

// ownsAny reports whether a file has any byte that is not the lower's.
func (d *differ) ownsAny(n *node, size int64) (bool, error) {
	h, err := d.f.fileHandle(n)
	if err != nil {
		return false, err
	}
	defer d.f.handles.release(h)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := d.f.load(n, h); err != nil {
		return false, err
	}
	return n.data.base != size || n.data.left != blocks(size), nil
}

func (d *differ) sameXattrs(n *node, id uint64) (bool, error) {
	ours, err := d.f.xattrsOf(d.ctx, n)
	if err != nil {
		return false, err
	}
	theirs, err := d.f.xattrsOf(d.ctx, &node{lower: id, kind: n.kind})
	if err != nil {
		return false, err
	}
	return slices.Equal(ours, theirs), nil
}

// xattrPair is one xattr as the guest sees it.
type xattrPair struct{ name, value string }

// xattrsOf are all of a file's xattrs, sorted by name.
func (f *FS) xattrsOf(ctx context.Context, n *node) ([]xattrPair, error) {
	names, err := f.listXattrs(ctx, n)
	if err != nil {
		return nil, err
	}
	var out []xattrPair
	for _, name := range names {
		v, err := f.xattrValue(ctx, n, name)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, xattrPair{name, string(v)})
	}
	slices.SortFunc(out, func(a, b xattrPair) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func (f *FS) xattrValue(ctx context.Context, n *node, name string) ([]byte, error) {
	f.tree.RLock()
	defer f.tree.RUnlock()
	if !n.up.Load() {
		return f.lower.Getxattr(ctx, n.lower, name)
	}
	p, mode, done, err := f.xattrAt(n)
	if err != nil {
		return nil, err
	}
	defer done()
	host, err := hostXattr(name, mode)
	if err != nil {
		return nil, err
	}
	return p.xattr(host)
}
