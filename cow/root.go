package cow

import (
	"context"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
)

// A lower that is still on its way does not know yet what its root directory looks like, nor those directories that it has
// only seen paths through. What an upper copies of them it keeps, so it waits: of its root it shows what the lower shows
// until that is certain (its record is the sign that it has been), and of other directories it asks for the list, which
// comes when they are complete.

// adoptRoot gives the upper's root the attributes that the lower's root shows. They are all in records: the directory
// itself keeps out everybody else on the host. Its time is set where nothing has changed it yet.
func (u *upper) adoptRoot(ctx context.Context, lower Lower, a *fs.Attr) error {
	root := place{u.top.fd, "."}
	var st unix.Stat_t
	if err := unix.Fstat(u.top.fd, &st); err != nil {
		return err
	}
	if err := copyXattrs(ctx, lower, fs.Root, unix.S_IFDIR, func(name string, value []byte) error {
		return root.setxattr(name, value, 0)
	}); err != nil {
		return err
	}
	if untouched(&st) {
		if err := root.utimes(timesOf(*a)); err != nil {
			return err
		}
	}
	over := override{uid: a.UID, gid: a.GID, mode: a.Mode}
	return root.setxattr(overrideXattr, []byte(over.format(st.Mode)), 0)
}

// untouched reports whether the root directory of an upper has the time that a new one gets until it has the lower's.
func untouched(st *unix.Stat_t) bool { return st.Mtim == unix.Timespec{} }

// newRoot makes the directory ready for adoptRoot.
func (u *upper) newRoot() error {
	root := place{u.top.fd, "."}
	if err := root.setxattr(recordPrefix+"probe", nil, 0); err != nil {
		return fmt.Errorf("its file system must have extended attributes: %w", err)
	}
	if err := root.removexattr(recordPrefix + "probe"); err != nil {
		return err
	}
	if err := unix.Fchmod(u.top.fd, 0o700); err != nil {
		return err
	}
	return root.utimes(new([2]unix.Timespec))
}

// adoptRoot takes over the attributes of the lower's root if that has not been done and they are certain; with wait, when
// they are.
func (f *FS) adoptRoot(ctx context.Context, wait bool) error {
	if !f.rootless.Load() {
		return nil
	}
	if wait {
		if err := f.wholeBelow(ctx, fs.Root); err != nil {
			return err
		}
	}
	a, err := f.lower.Attr(ctx, fs.Root)
	if err != nil || a.Provisional && !wait {
		return err
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	if !f.rootless.Load() {
		return nil
	}
	if err := f.upper.adoptRoot(ctx, f.lower, &a); err != nil {
		return err
	}
	m, err := readMeta(place{f.upper.top.fd, "."}, unix.S_IFDIR)
	if err != nil {
		return err
	}
	f.root.over, f.root.acl, f.root.defacl = m.over, m.acl, m.defacl
	f.rootless.Store(false)
	return nil
}

// wholeBelow waits until the lower knows all of a directory.
func (f *FS) wholeBelow(ctx context.Context, id uint64) error {
	return f.lower.ReadDir(ctx, id, 0, func(string, uint64, fs.Attr) bool { return false })
}

// borrowed fills out what the root shows until it has attributes of its own.
func borrowed(a *fs.Attr, st *unix.Stat_t, out *fuse.Attr) {
	out.Mode, out.Owner = a.Mode, fuse.Owner{Uid: a.UID, Gid: a.GID}
	if untouched(st) {
		out.Mtime, out.Mtimensec = uint64(a.Mtime.Sec), a.Mtime.Nsec
	}
}

// mayChange waits until the attributes that n has from the lower are certain. No lock is held.
func (f *FS) mayChange(ctx context.Context, n *node) error {
	if n == f.root {
		return f.adoptRoot(ctx, true)
	}
	return f.settled(ctx, n)
}

// settled waits until what n and the directories above it look like is certain, as far as they are to be copied up. No lock
// is held.
func (f *FS) settled(ctx context.Context, n *node) error {
	if n.up.Load() {
		return nil
	}
	var ids []uint64
	f.tree.RLock()
	for d := n; d != nil && !d.up.Load(); d = d.parent {
		if d.kind == unix.S_IFDIR {
			ids = append(ids, d.lower)
		}
	}
	f.tree.RUnlock()
	for _, id := range ids {
		a, err := f.lower.Attr(ctx, id)
		if err != nil {
			return err
		}
		if a.Implied {
			if err := f.wholeBelow(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}
