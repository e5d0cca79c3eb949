package cow

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// quota keeps an upper from taking more of the host's disk than it may. What counts is what the host allocates to files,
// and how many files and directories there are; whiteouts do not count, there can be no more of them than the lower has
// names. The zero limits mean none, and a nil *quota allows everything.
type quota struct {
	bytes, inodes int64 // limits; immutable

	mu   sync.Mutex // a leaf
	used usage
}

// usage is what usage.json holds while the upper is not open. An upper without it was not closed, and is counted.
type usage struct {
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
}

// bytesPerInode is how much of a limit in bytes an inode stands for, where nothing is said about inodes: what an empty
// file takes of the host's disk is not in its blocks.
const bytesPerInode = 4096

const usageFile = "usage.json"

func openQuota(u *upper, o Options) (*quota, error) {
	p := place{u.private.fd, usageFile}
	b, err := readSmall(p)
	known := err == nil
	if err == nil || err == unix.ENOENT {
		// Gone while the upper is open: if it is not there the next time, this was no orderly end.
		err = p.unlink()
	}
	if err != nil && err != unix.ENOENT {
		return nil, err
	}
	if o.Bytes <= 0 && o.Inodes <= 0 {
		return nil, nil
	}
	q := &quota{bytes: o.Bytes, inodes: o.Inodes}
	if q.inodes <= 0 {
		q.inodes = max(1, q.bytes/bytesPerInode)
	}
	if known && json.Unmarshal(b, &q.used) == nil {
		return q, nil
	}
	q.used, err = u.count()
	return q, err
}

// save leaves the usage for the next opening.
func (q *quota) save(u *upper) error {
	if q == nil {
		return nil
	}
	b, err := json.Marshal(q.used)
	if err != nil {
		return err
	}
	return u.writeSmall(usageFile, b)
}

// count finds the usage of everything in the upper. Directories may be nested deeper than there are descriptors.
func (u *upper) count() (used usage, err error) {
	seen := make(map[uint64]bool) // files with several names
	type level struct{ todo []string }
	stack := []level{{}}
	fd, err := place{u.top.fd, "."}.openDir()
	if err != nil {
		return used, err
	}
	defer func() { unix.Close(fd) }()
	enter := func() error {
		var failed error
		top := &stack[len(stack)-1]
		err := eachName(fd, func(name string, typ uint8) bool {
			st, err := place{fd, name}.stat()
			switch {
			case err != nil:
				failed = err
				return false
			case isWhiteout(&st) || name == privateDir && len(stack) == 1:
				return true
			case st.Mode&unix.S_IFMT == unix.S_IFDIR:
				top.todo = append(top.todo, name)
			case st.Nlink > 1 && seen[st.Ino]:
				return true
			case st.Nlink > 1:
				seen[st.Ino] = true
			}
			used.Inodes++
			if st.Mode&unix.S_IFMT == unix.S_IFREG {
				used.Bytes += st.Blocks * 512
			}
			return true
		})
		if err == nil {
			err = failed
		}
		return err
	}
	if err := enter(); err != nil {
		return used, err
	}
	for {
		top := &stack[len(stack)-1]
		next := ".."
		if n := len(top.todo); n > 0 {
			next, top.todo = top.todo[n-1], top.todo[:n-1]
			stack = append(stack, level{})
		} else if stack = stack[:len(stack)-1]; len(stack) == 0 {
			return used, u.countPrivate(&used, seen)
		}
		sub, err := unix.Openat(fd, next, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return used, fmt.Errorf("count what is used: %w", err)
		}
		unix.Close(fd)
		fd = sub
		if next != ".." {
			if err := enter(); err != nil {
				return used, err
			}
		}
	}
}

// countPrivate adds the maps, and the copied-up files of several names none of which is in the upper.
func (u *upper) countPrivate(used *usage, seen map[uint64]bool) error {
	for _, dir := range [...]*handle{u.indexHandle, u.rangesHandle} {
		var failed error
		err := eachName(dir.fd, func(name string, _ uint8) bool {
			st, err := place{dir.fd, name}.stat()
			if err != nil {
				failed = err
				return false
			}
			if seen[st.Ino] {
				return true
			}
			if dir == u.indexHandle {
				used.Inodes++
			}
			used.Bytes += st.Blocks * 512
			return true
		})
		if err := errors.Join(err, failed); err != nil {
			return fmt.Errorf("count what is used: %w", err)
		}
	}
	return nil
}

// addInode counts a new file, or says that there may be no more. A directory that is copied up is counted and never
// refused: it may be for a whiteout, and then it is what makes room. There can be no more of them than the lower has.
func (q *quota) addInode(copiedDir bool) error {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used.Inodes >= q.inodes && !copiedDir {
		return unix.ENOSPC
	}
	q.used.Inodes++
	return nil
}

// mapped counts what a file's map takes, given its descriptor, or with -1 that there is none any more.
func (q *quota) mapped(c *content, fd int) {
	if q == nil || q.bytes <= 0 {
		return
	}
	var st unix.Stat_t
	if fd >= 0 && unix.Fstat(fd, &st) != nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := st.Blocks * 512
	q.used.Bytes = max(0, q.used.Bytes+now-c.counted)
	c.counted = now
}

// knows notes what was counted for a map before.
func (q *quota) knows(c *content, fd int) {
	var st unix.Stat_t
	if q != nil && q.bytes > 0 && unix.Fstat(fd, &st) == nil {
		q.mu.Lock()
		c.counted = st.Blocks * 512
		q.mu.Unlock()
	}
}

// fresh says that nothing is counted yet for a new file.
func (q *quota) fresh(n *node) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n.measured = true
}

// noInode takes addInode back.
func (q *quota) noInode() {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used.Inodes = max(0, q.used.Inodes-1)
}

// removed counts a file as gone. What is taken off is what was put on, whatever the host says it had in the end.
func (q *quota) removed(n *node, st *unix.Stat_t) {
	if q == nil {
		return
	}
	q.noInode()
	q.mu.Lock()
	defer q.mu.Unlock()
	if !n.measured && n.kind == unix.S_IFREG {
		n.counted = st.Blocks * 512
	}
	q.used.Bytes = max(0, q.used.Bytes-n.counted)
	n.counted = 0
}

// before says whether [off, end) of a file may be written: there is room for all of it, or it is allocated already.
func (q *quota) before(n *node, h *handle, off, end int64) error {
	if q == nil || q.bytes <= 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.measure(n, h); err != nil {
		return err
	}
	if end == off || q.used.Bytes+end-off <= q.bytes {
		return nil
	}
	if hole, err := unix.Seek(h.fd, off, unix.SEEK_HOLE); err == nil && hole >= end {
		return nil
	}
	return unix.ENOSPC
}

// after counts what a change of a file's content took or gave back.
func (q *quota) after(n *node, h *handle) {
	if q == nil || q.bytes <= 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.measure(n, h)
}

// measure brings what is counted for a file up to date. The first time it was counted already. mu is held.
func (q *quota) measure(n *node, h *handle) error {
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		return err
	}
	now := st.Blocks * 512
	if n.measured {
		q.used.Bytes = max(0, q.used.Bytes+now-n.counted)
	}
	n.measured, n.counted = true, now
	return nil
}

// statfs narrows what the disk says to what the upper may take.
func (q *quota) statfs(out *fuse.StatfsOut) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes > 0 && out.Bsize > 0 {
		free := uint64(max(0, q.bytes-q.used.Bytes)) / uint64(out.Bsize)
		out.Blocks = min(out.Blocks, uint64(q.bytes)/uint64(out.Bsize))
		out.Bfree, out.Bavail = min(out.Bfree, free), min(out.Bavail, free)
	}
	free := uint64(max(0, q.inodes-q.used.Inodes))
	out.Files, out.Ffree = min(out.Files, uint64(q.inodes)), min(out.Ffree, free)
}
