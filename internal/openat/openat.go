// Package openat opens and reads files below a directory that is open, without ever following a symbolic link or leaving
// that directory: what file systems need whose names somebody hostile has chosen.
package openat

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Open opens path below the directory dir as openat2(2) does (Linux >= 5.6), close-on-exec. No component of path may be a
// symbolic link (ELOOP), a mount point (EXDEV) or lead above dir (EXDEV). Where openat2 is missing, a path of one component
// is held by O_NOFOLLOW alone and others are ENOSYS.
func Open(dir int, path string, flags int, mode uint32) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	if flags&unix.O_CREAT == 0 {
		mode = 0 // openat2 insists
	}
	how := unix.OpenHow{
		Flags: uint64(flags), Mode: uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(dir, path, &how)
		if err == unix.ENOSYS && !strings.Contains(path, "/") {
			fd, err = unix.Openat(dir, path, flags, mode)
		}
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// ProcFD is the path that leads to what fd has open, for the calls that take no descriptor.
func ProcFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// WriteAll writes p at off, however many calls that takes.
func WriteAll(fd int, p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pwrite(fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// ReadFull reads until p is full or the file ends.
func ReadFull(fd int, p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, nil
		}
		n += m
	}
	return n, nil
}

// Dirent is one entry of a directory.
type Dirent struct {
	Name string
	Ino  uint64
	Type uint8 // d_type
	Off  int64 // where the entry after it begins, for lseek
}

// Dirents reads the next entries of the directory fd into buf and calls fn for each, . and .. as well, until fn returns
// false. It returns false at the directory's end.
func Dirents(fd int, buf []byte, fn func(Dirent) bool) (more bool, err error) {
	n, err := unix.Getdents(fd, buf)
	for err == unix.EINTR {
		n, err = unix.Getdents(fd, buf)
	}
	if err != nil || n == 0 {
		return false, err
	}
	for rest := buf[:n]; len(rest) > 0; {
		d, size, err := parseDirent(rest)
		if err != nil {
			return false, err
		}
		rest = rest[size:]
		if !fn(d) {
			break
		}
	}
	return true, nil
}

var errDirent = errors.New("malformed directory entry")

// parseDirent decodes one struct linux_dirent64 (getdents64(2)).
func parseDirent(b []byte) (d Dirent, size int, err error) {
	if len(b) < 20 {
		return d, 0, errDirent
	}
	size = int(b[16]) | int(b[17])<<8
	if size < 20 || size > len(b) {
		return d, 0, errDirent
	}
	name, _, _ := strings.Cut(string(b[19:size]), "\x00")
	return Dirent{Name: name, Ino: le64(b), Type: b[18], Off: int64(le64(b[8:]))}, size, nil
}

func le64(b []byte) (v uint64) {
	for i := 7; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}
