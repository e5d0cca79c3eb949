package cow

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// end is one end of a rename.
type end struct {
	p    *node
	name string
	b    below
	seen emptiness // of a directory that may be replaced

	c child
	n *node // nil where there is nothing
}

// Rename moves a name, with everything below it: of a directory of the lower only its own record is copied up.
func (f *FS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	const known = unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE | unix.RENAME_WHITEOUT
	if in.Flags&^known != 0 || in.Flags&unix.RENAME_EXCHANGE != 0 && in.Flags != unix.RENAME_EXCHANGE {
		return fuse.EINVAL
	}
	return fail(f.rename(request(cancel), in, oldName, newName))
}

func (f *FS) rename(ctx context.Context, in *fuse.RenameIn, oldName, newName string) error {
	from, err := f.end(ctx, in.NodeId, oldName)
	if err != nil {
		return err
	}
	to, err := f.end(ctx, in.Newdir, newName)
	if err != nil {
		return err
	}
	exchange := in.Flags&unix.RENAME_EXCHANGE != 0
	var notEmpty error
	if !exchange {
		// Only a directory over a directory needs it empty; that it is not is said where it matters.
		to.seen, notEmpty = f.hiddenBelow(ctx, to.p, newName, &to.b)
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	if from.c, from.n, err = f.held(from.p, oldName, &from.b); err != nil {
		return err
	}
	defer f.drop(from.n)
	switch to.c, to.n, err = f.held(to.p, newName, &to.b); err {
	case nil:
		defer f.drop(to.n)
	case unix.ENOENT:
		to.n = nil
		if to.p.gone || exchange {
			return err
		}
	default:
		return err
	}
	if to.n == from.n && !exchange {
		if in.Flags&unix.RENAME_NOREPLACE != 0 {
			return unix.EEXIST
		}
		return nil // two names of one file: rename(2) does nothing
	}
	if err := f.mayRename(&from, &to, in.Flags, notEmpty); err != nil {
		return err
	}
	if exchange {
		return f.exchange(ctx, &from, &to)
	}
	if err := f.moveOver(ctx, &from, &to); err != nil {
		return err
	}
	if in.Flags&unix.RENAME_WHITEOUT != 0 {
		return f.leaveDevice(&from)
	}
	return nil
}

func (f *FS) end(ctx context.Context, dir uint64, name string) (e end, err error) {
	if e.p, err = f.directory(dir); err != nil {
		return e, err
	}
	if err = validName(name); err != nil {
		return e, err
	}
	e.name = name
	e.b = f.beneath(ctx, e.p, name)
	if e.b.attr.Implied { // it may be copied up
		if err := f.wholeBelow(ctx, e.b.id); err != nil {
			return e, err
		}
	}
	return e, f.settled(ctx, e.p)
}

// mayRename checks what rename(2) lists. tree is locked.
func (f *FS) mayRename(from, to *end, flags uint32, notEmpty error) error {
	fromDir := from.n.kind == unix.S_IFDIR
	if fromDir && within(to.p, from.n) {
		return unix.EINVAL
	}
	if to.n == nil {
		return nil
	}
	toDir := to.n.kind == unix.S_IFDIR
	switch {
	case flags&unix.RENAME_NOREPLACE != 0:
		return unix.EEXIST
	case flags&unix.RENAME_EXCHANGE != 0:
		if toDir && within(from.p, to.n) {
			return unix.EINVAL
		}
		return nil
	case fromDir && !toDir:
		return unix.ENOTDIR
	case toDir && !fromDir:
		return unix.EISDIR
	case !toDir:
		return nil
	case within(from.p, to.n):
		return unix.ENOTEMPTY
	case notEmpty != nil:
		return notEmpty
	}
	return f.emptyAbove(to.n, to.seen)
}

// within reports whether n is dir or below it.
func within(n, dir *node) bool {
	for ; n != nil; n = n.parent {
		if n == dir {
			return true
		}
	}
	return false
}

// moving brings what an end names into the upper, and makes a directory mean the same under its new name.
func (f *FS) moving(ctx context.Context, e *end, newBelow *below) error {
	if err := f.copyUpLocked(ctx, e.p); err != nil {
		return err
	}
	if err := f.copyUpLocked(ctx, e.n); err != nil {
		return err
	}
	if e.n.links != nil {
		if err := f.nameUp(ctx, e.n, e.p, e.name); err != nil {
			return err
		}
	}
	if e.n.kind != unix.S_IFDIR {
		return nil
	}
	at, done, err := f.at(e.n)
	if err != nil {
		return err
	}
	defer done()
	if e.n.lower != 0 {
		return at.setxattr(recordPrefix+"origin", []byte(formatOrigin(e.n.lower, 0)), 0)
	}
	if newBelow.id != 0 {
		return f.upper.setOpaque(at)
	}
	return nil
}

// moveOver renames from to to, replacing what is there. tree is locked.
func (f *FS) moveOver(ctx context.Context, from, to *end) error {
	if err := f.moving(ctx, from, &to.b); err != nil {
		return err
	}
	if err := f.copyUpLocked(ctx, to.p); err != nil {
		return err
	}
	if err := f.giveWay(ctx, to); err != nil {
		return err
	}
	src, done, err := f.in(from.p, from.name)
	if err != nil {
		return err
	}
	defer done()
	dst, done2, err := f.in(to.p, to.name)
	if err != nil {
		return err
	}
	defer done2()
	isDir := from.n.kind == unix.S_IFDIR
	if err := f.renameHiding(src, dst, isDir, from.b.id != 0); err != nil {
		return err
	}
	if to.n != nil {
		if isDir {
			f.goneDir(to.n, &to.c, to.p)
		} else {
			f.lost(ctx, to.n, to.p, to.name)
		}
	}
	f.renamed(from.n, from.p, from.name, to.p, to.name)
	if isDir {
		f.dirsChanged(from.p, -1)
		f.dirsChanged(to.p, 1)
	}
	f.namesChanged(from.p)
	f.namesChanged(to.p)
	return nil
}

// giveWay prepares what is at to for being replaced: a file keeps a place if the kernel knows it, a directory is emptied
// of its whiteouts, after it was told to show nothing of the lower.
func (f *FS) giveWay(ctx context.Context, to *end) error {
	if to.n == nil {
		return nil
	}
	if to.n.kind != unix.S_IFDIR && (to.c.upper || to.c.attr.Nlink > 1) {
		if err := f.prepareName(ctx, to.n, to.p, to.name); err != nil {
			return err
		}
	}
	if !to.n.up.Load() {
		return nil
	}
	at, done, err := f.in(to.p, to.name)
	if err != nil {
		return err
	}
	defer done()
	if to.n.kind != unix.S_IFDIR {
		if to.n.onlyName(to.p, to.name) {
			return at.link(f.orphan(to.n))
		}
		return nil
	}
	if to.n.lower != 0 {
		if err := f.upper.setOpaque(at); err != nil {
			return err
		}
	}
	return f.clear(at)
}

// exchange swaps two names. Both stay taken, so there is nothing to hide. tree is locked.
func (f *FS) exchange(ctx context.Context, from, to *end) error {
	if from.n == to.n {
		return nil
	}
	if err := f.moving(ctx, from, &to.b); err != nil {
		return err
	}
	if err := f.moving(ctx, to, &from.b); err != nil {
		return err
	}
	src, done, err := f.in(from.p, from.name)
	if err != nil {
		return err
	}
	defer done()
	dst, done2, err := f.in(to.p, to.name)
	if err != nil {
		return err
	}
	defer done2()
	if err := src.rename(dst, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	f.renamed(from.n, from.p, from.name, to.p, to.name)
	f.renamed(to.n, to.p, to.name, from.p, from.name)
	for _, e := range [][3]*node{{from.n, from.p, to.p}, {to.n, to.p, from.p}} {
		if e[0].kind == unix.S_IFDIR {
			f.dirsChanged(e[1], -1)
			f.dirsChanged(e[2], 1)
		}
	}
	f.namesChanged(from.p)
	f.namesChanged(to.p)
	return nil
}

// leaveDevice makes the character device 0:0 that an overlayfs inside the guest wants left behind: to us a file like any
// other.
func (f *FS) leaveDevice(from *end) error {
	at, done, err := f.in(from.p, from.name)
	if err != nil {
		return err
	}
	defer done()
	_, fd, err := f.make(at, looks{mode: unix.S_IFCHR}, "", making{covered: from.b.id != 0, hiding: from.b.id != 0})
	closeFD(fd)
	return err
}
