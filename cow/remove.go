package cow

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
)

// Unlink removes a name. A file that the kernel still knows stays usable until it forgets it.
func (f *FS) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return fail(f.unlink(request(cancel), h.NodeId, name))
}

func (f *FS) unlink(ctx context.Context, dir uint64, name string) error {
	p, err := f.directory(dir)
	if err != nil {
		return err
	}
	if err := validName(name); err != nil {
		return err
	}
	b := f.beneath(ctx, p, name)
	if err := f.settled(ctx, p); err != nil {
		return err
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	c, n, err := f.held(p, name, &b)
	if err != nil {
		return err
	}
	defer f.drop(n)
	if n.kind == unix.S_IFDIR {
		return unix.EISDIR
	}
	if err := f.copyUpLocked(ctx, p); err != nil {
		return err
	}
	at, done, err := f.in(p, name)
	if err != nil {
		return err
	}
	defer done()
	if !c.upper && !(isIndexed(&c.attr) && c.attr.Nlink > 1) {
		err = f.upper.hide(at)
	} else if err = f.prepareName(ctx, n, p, name); err == nil {
		err = f.removeUpper(n, p, at, b.id != 0)
	}
	if err != nil {
		return err
	}
	f.lost(ctx, n, p, name)
	f.namesChanged(p)
	return nil
}

// held resolves a name for a change, and keeps its node until drop. tree is locked.
func (f *FS) held(p *node, name string, b *below) (c child, n *node, err error) {
	if b.err != nil {
		return c, nil, b.err
	}
	if c, err = f.resolve(p, name, b); err != nil {
		return c, nil, err
	}
	n, err = f.attach(&c, p, name)
	return c, n, err
}

// drop undoes held.
func (f *FS) drop(n *node) {
	f.tableMu.Lock()
	defer f.tableMu.Unlock()
	n.lookups--
	f.discard(n)
}

// prepareName makes sure that a file and this name of it are in the upper, and that its link count will follow when the
// name goes.
func (f *FS) prepareName(ctx context.Context, n, p *node, name string) error {
	if err := f.copyUpLocked(ctx, n); err != nil {
		return err
	}
	if n.links == nil {
		return nil
	}
	if err := f.nameUp(ctx, n, p, name); err != nil {
		return err
	}
	at, done, err := f.at(n)
	if err != nil {
		return err
	}
	defer done()
	return f.linksFollowHost(ctx, n, at)
}

// onlyName reports whether p's name is the only one by which n can be found in the upper.
func (n *node) onlyName(p *node, name string) bool {
	return n.links == nil && len(n.more) == 0 && n.parent == p && n.name == name
}

// orphan is n's place when it has no name, cleared.
func (f *FS) orphan(n *node) place {
	p := place{f.upper.orphansHandle.fd, privateName(n.id)}
	p.unlink()
	return p
}

// removeUpper takes a file's name in the upper away, hiding the lower's if there is one. A file that would become
// unreachable goes to orphans/.
func (f *FS) removeUpper(n, p *node, at place, hide bool) error {
	keep := n.onlyName(p, at.name)
	to := f.upper.temp()
	if keep {
		to = f.orphan(n)
	}
	switch {
	case hide:
		if err := f.upper.replace(at, to); err != nil {
			return err
		}
		if !keep {
			to.unlink()
		}
		return nil
	case keep:
		return at.rename(to, 0)
	}
	return at.unlink()
}

// lost notes that n has lost a name: the last one, maybe. tree is locked.
func (f *FS) lost(ctx context.Context, n, p *node, name string) {
	if n.links != nil {
		f.unnamed(n, p, name)
		f.lostIndexed(ctx, n)
		return
	}
	if f.unnamed(n, p, name) {
		return
	}
	n.gone = true
	if n.up.Load() && n.kind != unix.S_IFDIR {
		f.move(n, &f.upper.orphans)
	}
}

// lostIndexed takes a file out of index/ that has no name left.
func (f *FS) lostIndexed(ctx context.Context, n *node) {
	at, done, err := f.at(n)
	if err != nil {
		return
	}
	defer done()
	st, err := at.stat()
	if err != nil {
		return
	}
	a, err := f.lower.Attr(ctx, n.lower)
	if err != nil || n.links.names(uint32(st.Nlink), a.Nlink) > 0 {
		return
	}
	if at.rename(f.orphan(n), 0) == nil {
		n.gone = true
		f.move(n, &f.upper.orphans)
	}
}

// Rmdir removes an empty directory.
func (f *FS) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return fail(f.rmdir(request(cancel), h.NodeId, name))
}

func (f *FS) rmdir(ctx context.Context, dir uint64, name string) error {
	p, err := f.directory(dir)
	if err != nil {
		return err
	}
	if err := validName(name); err != nil {
		return err
	}
	b := f.beneath(ctx, p, name)
	if err := f.settled(ctx, p); err != nil {
		return err
	}
	// The lower may make one wait for its list: without a lock.
	seen, err := f.hiddenBelow(ctx, p, name, &b)
	if err != nil {
		return err
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	c, n, err := f.held(p, name, &b)
	if err != nil {
		return err
	}
	defer f.drop(n)
	if n.kind != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	if err := f.emptyAbove(n, seen); err != nil {
		return err
	}
	if err := f.copyUpLocked(ctx, p); err != nil {
		return err
	}
	at, done, err := f.in(p, name)
	if err != nil {
		return err
	}
	defer done()
	if !c.upper {
		err = f.upper.hide(at)
	} else {
		err = f.removeDir(at, b.id != 0)
	}
	if err != nil {
		return err
	}
	f.goneDir(n, &c, p)
	f.namesChanged(p)
	return nil
}

// goneDir notes that a directory is no more. Whoever is in it still sees what it was.
func (f *FS) goneDir(n *node, c *child, p *node) {
	n.gone = true
	if c.upper {
		n.last = &c.st
		f.quota.noInode()
	}
	f.handles.drop(n)
	f.listings.drop(n)
	f.dirsChanged(p, -1)
}

// emptiness is what hiddenBelow saw.
type emptiness struct {
	id      uint64
	changes uint64
}

// hiddenBelow reports ENOTEMPTY if the lower shows anything through the directory called name in p.
func (f *FS) hiddenBelow(ctx context.Context, p *node, name string, b *below) (seen emptiness, err error) {
	f.tree.RLock()
	if b.err != nil {
		f.tree.RUnlock()
		return seen, b.err
	}
	c, err := f.resolve(p, name, b)
	if err == nil && !c.isDir() {
		err = unix.ENOTDIR
	}
	var n *node
	if err == nil {
		n, err = f.attach(&c, p, name)
	}
	if err == nil {
		seen = emptiness{n.id, n.changes()}
	}
	f.tree.RUnlock()
	if err != nil {
		return seen, err
	}
	defer f.Forget(n.id, 1)
	if n.lower == 0 {
		return seen, nil
	}
	var failed error
	err = f.lower.ReadDir(ctx, n.lower, 0, func(s string, id uint64, _ fs.Attr) bool {
		f.tree.RLock()
		defer f.tree.RUnlock()
		if !n.up.Load() {
			failed = unix.ENOTEMPTY
			return false
		}
		var c child
		found, err := f.inUpper(n, s, &below{}, &c)
		if !found || err == nil {
			failed = unix.ENOTEMPTY
		}
		if err != nil && err != unix.ENOENT {
			failed = err
		}
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return seen, err
}

// emptyAbove reports ENOTEMPTY if the upper shows anything in n, of which the lower was seen to show nothing. tree is
// locked.
func (f *FS) emptyAbove(n *node, seen emptiness) error {
	if n.id != seen.id || n.changes() != seen.changes {
		return unix.ENOTEMPTY // a racing change, which the kernel does not make
	}
	if !n.up.Load() {
		return nil
	}
	h, err := f.dirHandle(n)
	if err != nil {
		return err
	}
	defer f.handles.release(h)
	empty := true
	err = eachName(h.fd, func(name string, typ uint8) bool {
		empty = hidden(place{h.fd, name}, typ)
		return empty
	})
	if err == nil && !empty {
		err = unix.ENOTEMPTY
	}
	return err
}

// hidden reports whether an entry of an upper directory is none of the guest's.
func hidden(p place, typ uint8) bool {
	if len(p.name) >= len(whPrefix) && p.name[:len(whPrefix)] == whPrefix {
		return true
	}
	if typ != unix.DT_CHR && typ != unix.DT_UNKNOWN {
		return false
	}
	st, err := p.stat()
	return err == nil && isWhiteout(&st)
}

// removeDir removes an upper directory that holds nothing but whiteouts.
func (f *FS) removeDir(at place, hide bool) error {
	if !hide {
		if err := at.rmdir(); err != unix.ENOTEMPTY && err != unix.EEXIST {
			return err
		}
	}
	t := f.upper.temp()
	var err error
	if hide {
		err = f.upper.replace(at, t)
	} else {
		err = at.rename(t, 0)
	}
	if err != nil {
		return err
	}
	f.clear(t)
	t.rmdir()
	return nil
}

// clear removes what is in an upper directory: whiteouts.
func (f *FS) clear(p place) error {
	fd, err := p.openDir()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f.upper.purge(fd)
}

// namesChanged notes that names came or went in p. tree is locked.
func (f *FS) namesChanged(p *node) {
	if p.dir != nil {
		p.dir.changes++
	}
	f.listings.changed(p)
}
