package cow

import (
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/openat"
)

// place is a name in a directory that is open.
type place struct {
	dir  int
	name string // one component
}

// validName reports whether a name may stand in the upper: one component, no whiteout.
func validName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return unix.EINVAL
	case len(name) > 255:
		return unix.ENAMETOOLONG
	case strings.ContainsAny(name, "/\x00"):
		return unix.EINVAL
	case strings.HasPrefix(name, whPrefix):
		return unix.EPERM
	}
	return nil
}

// open opens a place without following a symbolic link or leaving the file system.
func (p place) open(flags int, mode uint32) (int, error) {
	return openat.Open(p.dir, p.name, flags, mode)
}

func (p place) openDir() (int, error) { return p.open(unix.O_RDONLY|unix.O_DIRECTORY, 0) }

func (p place) stat() (st unix.Stat_t, err error) {
	err = unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func (p place) unlink() error { return unix.Unlinkat(p.dir, p.name, 0) }
func (p place) rmdir() error  { return unix.Unlinkat(p.dir, p.name, unix.AT_REMOVEDIR) }

func (p place) rename(to place, flags uint) error {
	if flags == 0 {
		return unix.Renameat(p.dir, p.name, to.dir, to.name)
	}
	return unix.Renameat2(p.dir, p.name, to.dir, to.name, flags)
}

func (p place) link(to place) error { return unix.Linkat(p.dir, p.name, to.dir, to.name, 0) }

func (p place) chown(uid, gid uint32) error {
	return unix.Fchownat(p.dir, p.name, int(int32(uid)), int(int32(gid)), unix.AT_SYMLINK_NOFOLLOW)
}

// chmod changes the mode of anything but a symbolic link.
func (p place) chmod(mode uint32) error {
	err := unix.Fchmodat(p.dir, p.name, mode, unix.AT_SYMLINK_NOFOLLOW) // fchmodat2, Linux >= 6.6
	if err != unix.EOPNOTSUPP && err != unix.ENOSYS {
		return err
	}
	fd, err := p.open(unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod(procFD(fd), mode)
}

func (p place) utimes(ts *[2]unix.Timespec) error {
	return unix.UtimesNanoAt(p.dir, p.name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

func procFD(fd int) string { return openat.ProcFD(fd) }

// path names a place for the calls that know no directory descriptor. The last component is never followed by them.
func (p place) path() string { return procFD(p.dir) + "/" + p.name }

// xattrArgs is struct xattr_args of include/uapi/linux/xattr.h.
type xattrArgs struct {
	value unsafe.Pointer // a __u64 there: on 64-bit machines the same, and visible to the garbage collector
	size  uint32
	flags uint32
}

// getxattr reads an xattr into buf; with an empty buf it returns the size.
func (p place) getxattr(attr string, buf []byte) (int, error) {
	path, err := unix.BytePtrFromString(p.name)
	if err != nil {
		return 0, err
	}
	name, err := unix.BytePtrFromString(attr)
	if err != nil {
		return 0, err
	}
	args := xattrArgs{size: uint32(len(buf))}
	if len(buf) > 0 {
		args.value = unsafe.Pointer(unsafe.SliceData(buf))
	}
	n, _, no := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(p.dir), uintptr(unsafe.Pointer(path)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	switch no {
	case 0:
		return int(n), nil
	case unix.ENOSYS, unix.EPERM: // before Linux 6.13, or hidden by an older seccomp profile
		return unix.Lgetxattr(p.path(), attr, buf)
	}
	return 0, no
}

// xattr returns the value of an xattr of at most 64 KiB.
func (p place) xattr(attr string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := p.getxattr(attr, buf)
		if err == unix.ERANGE && len(buf) < 1<<16 {
			buf = make([]byte, 1<<16)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// xattrs calls fn for every xattr name of a place.
func (p place) xattrs(fn func(name string) error) error {
	buf := make([]byte, 512)
	n, err := p.listxattr(buf)
	if err == unix.ERANGE {
		buf = make([]byte, 1<<16)
		n, err = p.listxattr(buf)
	}
	if err == unix.EOPNOTSUPP {
		return nil
	}
	if err != nil {
		return err
	}
	for rest := buf[:n]; len(rest) > 0; {
		i := 0
		for i < len(rest) && rest[i] != 0 {
			i++
		}
		if err := fn(string(rest[:i])); err != nil {
			return err
		}
		rest = rest[min(i+1, len(rest)):]
	}
	return nil
}

func (p place) listxattr(buf []byte) (int, error) {
	path, err := unix.BytePtrFromString(p.name)
	if err != nil {
		return 0, err
	}
	n, _, no := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(p.dir), uintptr(unsafe.Pointer(path)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0)
	switch no {
	case 0:
		return int(n), nil
	case unix.ENOSYS, unix.EPERM:
		return unix.Llistxattr(p.path(), buf)
	}
	return 0, no
}

func (p place) setxattr(attr string, value []byte, flags int) error {
	return unix.Lsetxattr(p.path(), attr, value, flags)
}

func (p place) removexattr(attr string) error { return unix.Lremovexattr(p.path(), attr) }

func writeAll(fd int, p []byte, off int64) (int, error) { return openat.WriteAll(fd, p, off) }

func readFull(fd int, p []byte, off int64) (int, error) { return openat.ReadFull(fd, p, off) }

// eachName calls fn for every name of an open directory but . and .., with its d_type, until fn returns false. It reads
// through a descriptor of its own: fd's position is shared.
func eachName(fd int, fn func(name string, typ uint8) bool) error {
	d, err := place{fd, "."}.openDir()
	if err != nil {
		return err
	}
	defer unix.Close(d)
	buf := make([]byte, 32<<10)
	for going := true; going; {
		more, err := openat.Dirents(d, buf, func(e openat.Dirent) bool {
			going = e.Name == "." || e.Name == ".." || fn(e.Name, e.Type)
			return going
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
}
