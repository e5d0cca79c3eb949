package hostdir

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/openat"
)

// valid says whether a name is one component of a path.
func valid(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\x00")
}

// writable returns the node of an id that is to be changed.
func (f *FS) writable(id uint64) (*node, error) {
	if f.readOnly {
		return nil, unix.EROFS
	}
	n, err := f.node(id)
	if err == nil && n.only != nil {
		err = unix.EROFS
	}
	return n, err
}

// in calls fn with the directory of an id, open as O_PATH, to change what it contains.
func (f *FS) in(id uint64, s string, fn func(dir *node, fd int) error) fuse.Status {
	if !valid(s) {
		return fuse.EINVAL
	}
	dir, err := f.writable(id)
	if err != nil {
		return fuse.ToStatus(err)
	}
	fd, err := f.path(dir)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer unix.Close(fd)
	return fuse.ToStatus(fn(dir, fd))
}

// Mknod makes an empty file, a FIFO or a socket.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, s string, out *fuse.EntryOut) fuse.Status {
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return fuse.EPERM
	}
	return f.in(in.NodeId, s, func(dir *node, fd int) error {
		if err := unix.Mknodat(fd, s, in.Mode&unix.S_IFMT|0o600, 0); err != nil {
			return err
		}
		return f.born(dir, fd, s, &in.Caller, in.Mode, out)
	})
}

func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, s string, out *fuse.EntryOut) fuse.Status {
	return f.in(in.NodeId, s, func(dir *node, fd int) error {
		if err := unix.Mkdirat(fd, s, 0o700); err != nil {
			return err
		}
		return f.born(dir, fd, s, &in.Caller, unix.S_IFDIR|in.Mode, out)
	})
}

func (f *FS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, s string, out *fuse.EntryOut) fuse.Status {
	return f.in(in.NodeId, s, func(dir *node, fd int) error {
		if err := unix.Symlinkat(target, fd, s); err != nil {
			return err
		}
		return f.born(dir, fd, s, &in.Caller, unix.S_IFLNK, out)
	})
}

// born gives s, which was just made in dir, to who made it, with mode, and answers with it.
func (f *FS) born(dir *node, fd int, s string, caller *fuse.Caller, mode uint32, out *fuse.EntryOut) error {
	file, err := openat.Open(fd, s, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if err := f.bequeath(fd, file, caller, mode); err != nil {
		return err
	}
	return f.enter(dir, fd, s, out)
}

// bequeath makes file, new in the directory dir, look as whoever asked for it wants it: neither this process's umask nor
// its user count. In a set-gid directory the group is the directory's, and directories are set-gid in turn (inode(7)).
func (f *FS) bequeath(dir, file int, caller *fuse.Caller, mode uint32) error {
	kind := mode & unix.S_IFMT
	var parent unix.Stat_t
	if err := unix.Fstat(dir, &parent); err != nil {
		return err
	}
	gid := int(caller.Gid)
	if parent.Mode&unix.S_ISGID != 0 {
		gid = -1
		if kind == unix.S_IFDIR {
			mode |= unix.S_ISGID
		}
	}
	if !f.owner.mapped {
		if err := f.owner.chown(file, int(caller.Uid), gid); err != nil {
			return err
		}
	}
	if kind == unix.S_IFLNK {
		return nil
	}
	return unix.Chmod(openat.ProcFD(file), plain(kind, mode))
}

// Link gives a file another name. The file is found through its descriptor, so that it is the one that was meant.
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, s string, out *fuse.EntryOut) fuse.Status {
	return f.in(in.NodeId, s, func(dir *node, fd int) error {
		n, err := f.writable(in.Oldnodeid)
		if err != nil {
			return err
		}
		if n.fixed >= 0 {
			return unix.EPERM // not below the directory
		}
		old, err := f.path(n)
		if err != nil {
			return err
		}
		defer unix.Close(old)
		if err := unix.Linkat(unix.AT_FDCWD, openat.ProcFD(old), fd, s, unix.AT_SYMLINK_FOLLOW); err != nil {
			return err
		}
		return f.enter(dir, fd, s, out)
	})
}

func (f *FS) Unlink(_ <-chan struct{}, in *fuse.InHeader, s string) fuse.Status {
	return f.remove(in.NodeId, s, 0)
}

func (f *FS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, s string) fuse.Status {
	return f.remove(in.NodeId, s, unix.AT_REMOVEDIR)
}

// remove leaves the node as it is: that it has lost a name is seen when it is looked for there.
func (f *FS) remove(id uint64, s string, flags int) fuse.Status {
	return f.in(id, s, func(_ *node, fd int) error { return unix.Unlinkat(fd, s, flags) })
}

// Rename moves a file. Whoever works below a directory that is moved finds it at its new place.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 || !valid(newName) {
		return fuse.EINVAL
	}
	return f.in(in.NodeId, oldName, func(dir *node, from int) error {
		toDir, err := f.writable(in.Newdir)
		if err != nil {
			return err
		}
		to, err := f.path(toDir)
		if err != nil {
			return err
		}
		defer unix.Close(to)
		var a, b unix.Stat_t
		if err := unix.Fstatat(from, oldName, &a, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		exchange := in.Flags&unix.RENAME_EXCHANGE != 0
		if exchange {
			if err := unix.Fstatat(to, newName, &b, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
		}
		if err := unix.Renameat2(from, oldName, to, newName, uint(in.Flags)); err != nil {
			return err
		}
		f.moved(keyOf(&a), name{dir, oldName}, name{toDir, newName})
		if exchange {
			f.moved(keyOf(&b), name{toDir, newName}, name{dir, oldName})
		}
		return nil
	})
}

func (f *FS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := f.node(in.NodeId)
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	if n.key.kind != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	fd, err := f.path(n)
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	return buf[:size], fuse.OK
}
