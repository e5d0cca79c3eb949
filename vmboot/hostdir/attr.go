package hostdir

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/openat"
)

// setid are the mode bits of a file, but not of a directory, that would make it run as another user.
const setid = unix.S_ISUID | unix.S_ISGID

// plain is a mode as a guest may see and set it.
func plain(kind, mode uint32) uint32 {
	mode &= 0o7777
	if kind != unix.S_IFDIR {
		return mode &^ setid
	}
	return mode &^ unix.S_ISUID
}

func (f *FS) fillAttr(out *fuse.Attr, n *node, st *unix.Stat_t) {
	*out = fuse.Attr{
		Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks), Blksize: uint32(st.Blksize),
		Mode: n.key.kind | plain(n.key.kind, st.Mode), Nlink: uint32(st.Nlink),
		Atime: uint64(st.Atim.Sec), Atimensec: uint32(st.Atim.Nsec),
		Mtime: uint64(st.Mtim.Sec), Mtimensec: uint32(st.Mtim.Nsec),
		Ctime: uint64(st.Ctim.Sec), Ctimensec: uint32(st.Ctim.Nsec),
	}
	out.Uid, out.Gid = f.owner.shown(st.Uid, st.Gid)
}

func (f *FS) fillEntry(out *fuse.EntryOut, n *node, st *unix.Stat_t) {
	out.NodeId = n.id
	valid := attrValid
	if n.key.kind == unix.S_IFDIR {
		valid = dirValid
	}
	out.SetEntryTimeout(valid)
	out.SetAttrTimeout(valid)
	f.fillAttr(&out.Attr, n, st)
}

// Lookup finds a name. That there is none is never remembered.
func (f *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, s string, out *fuse.EntryOut) fuse.Status {
	dir, err := f.node(in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	if dir.only != nil {
		return fuse.ToStatus(f.lookupOnly(dir, s, out))
	}
	fd, err := f.path(dir)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer unix.Close(fd)
	return fuse.ToStatus(f.enter(dir, fd, s, out))
}

// enter answers with the file called s in dir, which fd has open.
func (f *FS) enter(dir *node, fd int, s string, out *fuse.EntryOut) error {
	if !valid(s) {
		return unix.EINVAL
	}
	file, err := openat.Open(fd, s, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil {
		unix.Close(file)
		return err
	}
	n, err := f.attach(&st, dir, s, file)
	if err != nil {
		return err
	}
	f.fillEntry(out, n, &st)
	return nil
}

func (f *FS) lookupOnly(root *node, s string, out *fuse.EntryOut) error {
	if s != FileName {
		return unix.ENOENT
	}
	var st unix.Stat_t
	if err := unix.Fstat(root.only.fixed, &st); err != nil {
		return err
	}
	f.fillEntry(out, root.only, &st) // it is never forgotten, so nobody counts
	return nil
}

// GetAttr is stat.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	return fuse.ToStatus(f.stat(n, out))
}

func (f *FS) stat(n *node, out *fuse.AttrOut) error {
	st := unix.Stat_t{Mode: unix.S_IFDIR | 0o555, Nlink: 2, Ino: 1, Blksize: 4096}
	if n.only == nil {
		fd, err := f.path(n)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
	}
	valid := attrValid
	if n.key.kind == unix.S_IFDIR {
		valid = dirValid
	}
	out.SetTimeout(valid)
	f.fillAttr(&out.Attr, n, &st)
	return nil
}

// SetAttr changes mode, owner, size and times.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := f.writable(in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	if err := f.change(n, in); err != nil {
		return fuse.ToStatus(err)
	}
	return fuse.ToStatus(f.stat(n, out))
}

func (f *FS) change(n *node, in *fuse.SetAttrIn) error {
	fd, err := f.path(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		uid, gid := -1, -1
		if v, ok := in.GetUID(); ok {
			uid = int(v)
		}
		if v, ok := in.GetGID(); ok {
			gid = int(v)
		}
		if err := f.owner.chown(fd, uid, gid); err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if n.key.kind == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		if err := unix.Chmod(openat.ProcFD(fd), plain(n.key.kind, mode)); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		if err := f.truncate(n, fd, in, int64(size)); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	times := []unix.Timespec{
		timeOf(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		timeOf(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	return unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH)
}

func timeOf(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// truncate sets n's size: through the open file that the guest names, whose mode may have been changed since, or by path.
func (f *FS) truncate(n *node, fd int, in *fuse.SetAttrIn, size int64) error {
	if n.key.kind != unix.S_IFREG {
		return unix.EINVAL
	}
	if fh, ok := in.GetFh(); ok {
		h, err := f.handle(fh, n.id)
		if err != nil {
			return err
		}
		defer h.mu.RUnlock()
		return unix.Ftruncate(h.fd, size)
	}
	if err := dropSetid(fd); err != nil {
		return err
	}
	return unix.Truncate(openat.ProcFD(fd), size)
}

// StatFs describes the host's file system.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n := f.root
	if n.only != nil {
		n = n.only
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(n.fixed, &st); err != nil {
		return fuse.ToStatus(err)
	}
	*out = fuse.StatfsOut{Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize)}
	return fuse.OK
}
