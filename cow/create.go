package cow

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Mknod makes files, devices, fifos and sockets. Devices are a record on a plain file: the host has no use for them.
func (f *FS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	l := looks{mode: in.Mode, uid: in.Uid, gid: in.Gid, rdev: in.Rdev}
	switch in.Mode & unix.S_IFMT {
	case 0:
		l.mode |= unix.S_IFREG
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
	default:
		return fuse.EINVAL
	}
	return fail(f.create(request(cancel), in.NodeId, name, l, in.Umask, "", out))
}

// Mkdir makes a directory.
func (f *FS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	l := looks{mode: in.Mode&07777 | unix.S_IFDIR, uid: in.Uid, gid: in.Gid}
	return fail(f.create(request(cancel), in.NodeId, name, l, in.Umask, "", out))
}

// Symlink makes a symbolic link. Nothing here ever follows it.
func (f *FS) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if target == "" || len(target) > 4095 {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	l := looks{mode: unix.S_IFLNK | 0o777, uid: h.Uid, gid: h.Gid}
	return fail(f.create(request(cancel), h.NodeId, name, l, 0, target, out))
}

// create makes a new file called name in directory dir.
func (f *FS) create(ctx context.Context, dir uint64, name string, l looks, umask uint32, target string, out *fuse.EntryOut) error {
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
	was, err := f.resolve(p, name, &b)
	switch {
	case err == nil:
		return unix.EEXIST
	case err != unix.ENOENT:
		return err
	}
	if err := f.copyUpLocked(ctx, p); err != nil {
		return err
	}
	inh, err := f.inherit(p, &l, umask)
	if err != nil {
		return err
	}
	to, done, err := f.in(p, name)
	if err != nil {
		return err
	}
	defer done()
	if err := f.quota.addInode(false); err != nil {
		return err
	}
	c, fd, err := f.make(to, l, target, making{inh, was.covered(), b.id != 0})
	if err != nil {
		f.quota.noInode()
		return err
	}
	f.namesChanged(p)
	if c.isDir() {
		f.dirsChanged(p, 1)
	}
	if err := f.entry(ctx, &c, p, name, out); err != nil {
		closeFD(fd)
		return err
	}
	n, err := f.node(out.NodeId)
	if err != nil {
		closeFD(fd)
		return err
	}
	f.quota.fresh(n)
	if fd >= 0 && n.kind == unix.S_IFREG {
		f.handles.release(f.handles.put(n, fd)) // it will be written to
		return nil
	}
	closeFD(fd)
	return nil
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// inherited is what a new file gets from its directory.
type inherited struct {
	access, def []byte // ACLs
}

// inherit applies to a new file's looks what its directory says: the group of a setgid directory, and a default ACL in
// place of the umask. tree is held.
func (f *FS) inherit(p *node, l *looks, umask uint32) (inh inherited, err error) {
	if !p.defacl && p.over == nil && f.upper.owners && !f.upper.bothForm {
		l.mode &^= umask & 0o777 // a setgid bit would be in a record
		return inh, nil
	}
	at, done, err := f.at(p)
	if err != nil {
		return inh, err
	}
	defer done()
	dir, err := f.looksLike(p, at)
	if err != nil {
		return inh, err
	}
	if dir.mode&unix.S_ISGID != 0 {
		l.gid = dir.gid
		if l.mode&unix.S_IFMT == unix.S_IFDIR {
			l.mode |= unix.S_ISGID
		}
	}
	if l.mode&unix.S_IFMT == unix.S_IFLNK {
		return inh, nil
	}
	if !p.defacl {
		l.mode &^= umask & 0o777
		return inh, nil
	}
	def, err := storedACL(at, unix.S_IFDIR, xattrDefaultACL)
	if err != nil {
		return inh, err
	}
	if l.mode&unix.S_IFMT == unix.S_IFDIR {
		inh.def = def.bytes()
	}
	l.mode = def.restrict(l.mode)
	if !def.minimal() {
		inh.access = def.bytes()
	}
	return inh, nil
}

// making is what a new file must take care of.
type making struct {
	inherited
	covered bool // there is a whiteout device in its place
	hiding  bool // and something of that name in the lower
}

// make brings a new file to a place where there is nothing but, perhaps, a whiteout. It returns it, and of a regular file
// a descriptor or -1.
func (f *FS) make(to place, l looks, target string, m making) (c child, fd int, err error) {
	host, over := f.upper.onHost(l)
	mine := !f.upper.owners || l.uid == f.upper.uid && l.gid == f.upper.gid
	bare := over == nil && mine && !m.covered && !m.hiding && m.access == nil && m.def == nil && l.mode&f.upper.umask&0o777 == 0
	if bare {
		fd = -1
		switch host & unix.S_IFMT {
		case unix.S_IFREG:
			fd, err = to.open(unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOATIME, host&0o7777)
		case unix.S_IFDIR:
			err = unix.Mkdirat(to.dir, to.name, host&0o7777)
		default:
			err = unix.Symlinkat(target, to.dir, to.name)
		}
		if err != nil {
			return c, -1, err
		}
	} else {
		if fd, err = f.makeDressed(to, l, target, m); err != nil {
			return c, -1, err
		}
	}
	c.upper = true
	if fd >= 0 {
		err = unix.Fstat(fd, &c.st)
	} else {
		c.st, err = to.stat()
	}
	if err != nil {
		closeFD(fd)
		return c, -1, err
	}
	c.id = firstUpper + c.st.Ino
	c.meta = meta{over: over, acl: m.access != nil, defacl: m.def != nil}
	return c, fd, nil
}

// makeDressed is make for what one system call cannot make: it is built in work/ and renamed.
func (f *FS) makeDressed(to place, l looks, target string, m making) (fd int, err error) {
	d, err := f.upper.draft(l, target)
	if err != nil {
		return -1, err
	}
	fd, d.fd = d.fd, -1
	defer func() {
		if err != nil {
			closeFD(fd)
			d.discard()
		}
	}()
	isDir := l.mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && m.hiding {
		if err := d.opaque(); err != nil {
			return -1, err
		}
	}
	for attr, v := range map[string][]byte{xattrACL: m.access, xattrDefaultACL: m.def} {
		if v == nil {
			continue
		}
		host, err := hostXattr(attr, d.host)
		if err == nil {
			err = d.setxattr(host, v, 0)
		}
		if err != nil {
			return -1, err
		}
	}
	if isDir && m.covered {
		return fd, f.overWhiteout(d.place, to)
	}
	return fd, d.rename(to, 0)
}

// overWhiteout renames a directory to where a whiteout device is, which rename alone refuses.
func (f *FS) overWhiteout(from, to place) error {
	err := from.rename(to, unix.RENAME_EXCHANGE)
	if err == nil {
		from.unlink()
		return nil
	}
	if err != unix.EINVAL {
		return err
	}
	// A host without exchange writes whiteout files; this device is of another mount.
	if err := to.makeWhiteoutFile(); err != nil {
		return err
	}
	if err := to.unlink(); err != nil {
		return err
	}
	return from.rename(to, 0)
}

// Tmpfile makes a file without a name, in orphans/: it is there for Link to find, and gone with its last user.
func (f *FS) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return fail(f.tmpfile(request(cancel), in, out))
}

func (f *FS) tmpfile(ctx context.Context, in *fuse.CreateIn, out *fuse.CreateOut) error {
	p, err := f.directory(in.NodeId)
	if err != nil {
		return err
	}
	l := looks{mode: in.Mode&07777 | unix.S_IFREG, uid: in.Uid, gid: in.Gid}
	if err := f.settled(ctx, p); err != nil {
		return err
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	if p.gone {
		return unix.ENOENT
	}
	if err := f.copyUpLocked(ctx, p); err != nil {
		return err
	}
	inh, err := f.inherit(p, &l, in.Umask)
	if err != nil {
		return err
	}
	if err := f.quota.addInode(false); err != nil {
		return err
	}
	t := f.upper.temp()
	c, fd, err := f.make(t, l, "", making{inherited: inh})
	if err != nil {
		f.quota.noInode()
		return err
	}
	name := privateName(c.id)
	if err := t.rename(place{f.upper.orphansHandle.fd, name}, 0); err != nil {
		unix.Close(fd)
		t.unlink()
		return err
	}
	n, err := f.attach(&c, &f.upper.orphans, name)
	if err != nil {
		unix.Close(fd)
		return err
	}
	n.gone = true
	f.quota.fresh(n)
	f.handles.release(f.handles.put(n, fd))
	out.EntryOut = fuse.EntryOut{NodeId: n.id, Generation: 1, EntryValid: forever, AttrValid: forever}
	_, err = f.upperAttr(ctx, n, &c.st, &out.Attr)
	return err
}
