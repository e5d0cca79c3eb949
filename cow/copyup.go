package cow

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
)

// looks are the attributes that a new file of the upper is to have in the guest's eyes.
type looks struct {
	mode     uint32 // with its type
	uid, gid uint32
	rdev     uint32
}

// onHost says how looks are stored: the mode of the host's file, and the record where that is not enough.
func (u *upper) onHost(l looks) (hostMode uint32, over *override) {
	kind := l.mode & unix.S_IFMT
	plain := kind == unix.S_IFREG || kind == unix.S_IFDIR || kind == unix.S_IFLNK
	if !u.owners || !plain || l.mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		over = &override{uid: l.uid, gid: l.gid, mode: l.mode, rdev: l.rdev}
	}
	hostMode = kind | l.mode&0o1777
	switch {
	case kind == unix.S_IFDIR && !u.owners:
		hostMode |= 0o700
	case kind == unix.S_IFREG && !u.owners:
		hostMode |= 0o600
	case !plain || kind == unix.S_IFLNK && !u.owners:
		hostMode = unix.S_IFREG | 0o600 // a file that stands for it
	}
	return hostMode, over
}

// draft is a new file in work/, to be renamed to where it belongs when it is complete.
type draft struct {
	place
	u    *upper
	host uint32 // st_mode
	over *override
	fd   int // of regular files, else -1
}

// draft makes a file that looks as wanted. target is of symbolic links.
func (u *upper) draft(l looks, target string) (d *draft, err error) {
	d = &draft{place: u.temp(), u: u, fd: -1}
	d.host, d.over = u.onHost(l)
	defer func() {
		if err != nil {
			d.discard()
		}
	}()
	made := uint32(0o600)
	switch d.host & unix.S_IFMT {
	case unix.S_IFDIR:
		made = 0o700
		err = unix.Mkdirat(d.dir, d.name, made)
	case unix.S_IFLNK:
		err = unix.Symlinkat(target, d.dir, d.name)
	default:
		d.fd, err = d.open(unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOATIME, made)
		if err == nil && l.mode&unix.S_IFMT == unix.S_IFLNK {
			_, err = writeAll(d.fd, []byte(target), 0)
		}
	}
	if err != nil {
		return nil, err
	}
	if u.owners && (l.uid != u.uid || l.gid != u.gid) {
		if err := d.chown(l.uid, l.gid); err != nil {
			return nil, err
		}
	}
	if d.host&unix.S_IFMT != unix.S_IFLNK && d.host&0o7777 != made {
		if err := d.chmod(d.host & 0o7777); err != nil {
			return nil, err
		}
	}
	if d.over != nil {
		if err := d.setxattr(overrideXattr, []byte(d.over.format(d.host)), 0); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// record writes one of our records on the draft.
func (d *draft) record(name, value string) error {
	return d.setxattr(prefixFor(d.host)+name, []byte(value), 0)
}

// discard removes a draft that came to nothing.
func (d *draft) discard() {
	d.shut()
	if d.unlink() == unix.EISDIR {
		d.rmdir()
	}
}

func (d *draft) shut() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

// opaque marks the draft, a directory, as showing nothing of the lower.
func (d *draft) opaque() error { return d.u.setOpaque(d.place) }

func (u *upper) setOpaque(p place) error {
	if u.owners {
		return p.setxattr(opaqueXattrs[0], []byte("y"), 0)
	}
	return p.setxattr(opaqueXattrs[1], []byte("y"), 0)
}

func timesOf(a fs.Attr) *[2]unix.Timespec {
	t := unix.Timespec{Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}
	return &[2]unix.Timespec{t, t}
}

// copyUp gives n, a file or directory that is only in the lower, its place in the upper: its attributes, and of a file's
// content nothing. The guest sees no change.
func (f *FS) copyUp(ctx context.Context, n *node) error {
	if n.up.Load() {
		return nil
	}
	if err := f.settled(ctx, n); err != nil {
		return err
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	return f.copyUpLocked(ctx, n)
}

// copyUpLocked is copyUp with tree locked.
func (f *FS) copyUpLocked(ctx context.Context, n *node) error {
	var missing []*node // n first
	for d := n; !d.up.Load(); d = d.parent {
		missing = append(missing, d)
		if d.gone {
			if d.kind == unix.S_IFDIR {
				return unix.ENOENT
			}
			break // it needs no directory
		}
		if d == n && d.kind != unix.S_IFDIR {
			a, err := f.lower.Attr(ctx, d.lower)
			if err != nil {
				return err
			}
			if isIndexed(&a) {
				break
			}
		}
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := f.copyUpOne(ctx, missing[i]); err != nil {
			return err
		}
	}
	return nil
}

// copyUpOne copies up n, whose directory is in the upper where n needs it there.
func (f *FS) copyUpOne(ctx context.Context, n *node) error {
	a, err := f.lower.Attr(ctx, n.lower)
	if err != nil {
		return err
	}
	var target string
	if n.kind == unix.S_IFLNK {
		if target, err = f.lower.Readlink(ctx, n.lower); err != nil {
			return err
		}
	}
	if err := f.quota.addInode(n.kind == unix.S_IFDIR); err != nil {
		return err
	}
	d, err := f.upper.draft(looks{a.Mode, a.UID, a.GID, a.Rdev}, target)
	if err != nil {
		f.quota.noInode()
		return err
	}
	var m meta
	err = f.dress(ctx, d, n, &a, &m)
	if err == nil {
		err = f.settle(d, n, &m)
	}
	if err != nil {
		d.discard()
		f.quota.noInode()
		return err
	}
	m.over = d.over
	n.setMeta(&m)
	if n.kind == unix.S_IFREG && a.Size > 0 {
		n.data = newContent(n, a.Size)
	}
	if n.dir != nil {
		n.dir.counted = true
	}
	f.quota.fresh(n)
	n.up.Store(true)
	if n.kind == unix.S_IFREG {
		f.handles.release(f.handles.put(n, d.fd))
	} else {
		d.shut()
	}
	return nil
}

// dress gives the draft of n what the lower's file has.
func (f *FS) dress(ctx context.Context, d *draft, n *node, a *fs.Attr, m *meta) error {
	base := int64(0)
	if n.kind == unix.S_IFREG {
		base = a.Size
		if err := unix.Ftruncate(d.fd, a.Size); err != nil {
			return err
		}
	}
	if err := d.record("origin", formatOrigin(n.lower, base)); err != nil {
		return err
	}
	if isIndexed(a) && !n.gone {
		m.links = &linkCount{}
		if err := d.record("nlink", m.links.format()); err != nil {
			return err
		}
	}
	if err := copyXattrs(ctx, f.lower, n.lower, d.host, func(name string, value []byte) error {
		m.note(name)
		return d.setxattr(name, value, 0)
	}); err != nil {
		return err
	}
	return d.utimes(timesOf(*a))
}

// settle renames the draft of n to its place.
func (f *FS) settle(d *draft, n *node, m *meta) error {
	switch {
	case n.gone:
		if err := d.rename(place{f.upper.orphansHandle.fd, privateName(n.id)}, 0); err != nil {
			return err
		}
		f.move(n, &f.upper.orphans)
		return nil
	case m.links != nil:
		f.indexed.Store(true)
		return d.rename(place{f.upper.indexHandle.fd, privateName(n.lower)}, 0)
	}
	at, done, err := f.at(n)
	if err != nil {
		return err
	}
	defer done()
	// The directory's times are not to show that something came to be in the upper.
	var st unix.Stat_t
	if err := unix.Fstat(at.dir, &st); err != nil {
		return err
	}
	if err := d.rename(at, 0); err != nil {
		return err
	}
	f.listings.changed(n.parent)
	return place{at.dir, "."}.utimes(&[2]unix.Timespec{st.Atim, st.Mtim})
}
