package hostdir

import (
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/openat"
)

// handle is a file or directory that the guest has open. It keeps a file that has lost its last name.
type handle struct {
	n        *node // immutable
	appended bool  // what is written goes to the file's end, wherever that is by then; immutable
	listing  listing

	mu sync.RWMutex // held for reading while fd is in use
	fd int          // -1 when closed; guarded by mu
}

// keep enters fd, which it takes over, as an open file of n.
func (f *FS) keep(n *node, fd int, appended bool) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.handles) >= f.maxHandles {
		unix.Close(fd)
		return 0, unix.ENFILE
	}
	f.nextFH++
	h := &handle{n: n, fd: fd, appended: appended}
	f.handles[f.nextFH] = h
	n.open = append(n.open, h)
	return f.nextFH, nil
}

// handle returns an open file of node id, locked for reading: the caller unlocks it.
func (f *FS) handle(fh, id uint64) (*handle, error) {
	f.mu.Lock()
	h := f.handles[fh]
	f.mu.Unlock()
	if h == nil || h.n.id != id {
		return nil, unix.EBADF
	}
	h.mu.RLock()
	if h.fd < 0 {
		h.mu.RUnlock()
		return nil, unix.EBADF
	}
	return h, nil
}

func (f *FS) release(fh uint64) {
	f.mu.Lock()
	h := f.handles[fh]
	delete(f.handles, fh)
	if h != nil {
		h.n.open = slices.DeleteFunc(h.n.open, func(o *handle) bool { return o == h })
	}
	f.mu.Unlock()
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	unix.Close(h.fd)
	h.fd = -1
}

func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.release(in.Fh) }

// openFlags are the host's flags for the guest's: what a guest's kernel does itself, and what would change where its
// writes of whole pages go, is left out.
func openFlags(guest uint32) int {
	return int(guest&unix.O_ACCMODE) | unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK
}

// Open opens a regular file. Of others a kernel has no need to ask, and opening a device may do anything.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	out.Fh, err = f.open(n, in.Flags)
	return fuse.ToStatus(err)
}

func (f *FS) open(n *node, flags uint32) (uint64, error) {
	if n.key.kind != unix.S_IFREG {
		return 0, unix.EACCES
	}
	writes := flags&unix.O_ACCMODE != unix.O_RDONLY
	if writes && f.readOnly {
		return 0, unix.EROFS
	}
	path, err := f.path(n)
	if err != nil {
		return 0, err
	}
	defer unix.Close(path)
	if writes {
		if err := dropSetid(path); err != nil {
			return 0, err
		}
	}
	fd, err := unix.Open(openat.ProcFD(path), openFlags(flags), 0)
	if err != nil {
		return 0, err
	}
	return f.keep(n, fd, flags&unix.O_APPEND != 0)
}

// dropSetid takes the bits from a file that is about to be written that would let whoever runs it become its owner. The
// kernel does so only for writers that are not root.
func dropSetid(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&setid == 0 {
		return nil
	}
	return unix.Chmod(openat.ProcFD(fd), st.Mode&0o7777&^setid)
}

// Create makes and opens a file. One that has come into being meanwhile is opened, unless the guest wants a new one.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, s string, out *fuse.CreateOut) fuse.Status {
	return f.in(in.NodeId, s, func(dir *node, fd int) error {
		file, err := openat.Open(fd, s, openFlags(in.Flags)|unix.O_CREAT|unix.O_EXCL, 0o600)
		if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
			return f.createExisting(dir, fd, s, in.Flags, out)
		}
		if err != nil {
			return err
		}
		if err := f.bequeath(fd, file, &in.Caller, unix.S_IFREG|in.Mode); err != nil {
			unix.Close(file)
			return err
		}
		if err := f.enter(dir, fd, s, &out.EntryOut); err != nil {
			unix.Close(file)
			return err
		}
		n, err := f.node(out.NodeId)
		if err != nil {
			unix.Close(file)
			return err
		}
		out.Fh, err = f.keep(n, file, in.Flags&unix.O_APPEND != 0)
		return f.unlessFailed(n, err)
	})
}

func (f *FS) createExisting(dir *node, fd int, s string, flags uint32, out *fuse.CreateOut) error {
	if err := f.enter(dir, fd, s, &out.EntryOut); err != nil {
		return err
	}
	n, err := f.node(out.NodeId)
	if err != nil {
		return err
	}
	out.Fh, err = f.open(n, flags)
	return f.unlessFailed(n, err)
}

// unlessFailed takes back the lookup of an answer that is not given.
func (f *FS) unlessFailed(n *node, err error) error {
	if err != nil {
		f.Forget(n.id, 1)
	}
	return err
}

func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, err := f.handle(in.Fh, in.NodeId)
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	defer h.mu.RUnlock()
	n, err := openat.ReadFull(h.fd, buf, int64(in.Offset))
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, err := f.handle(in.Fh, in.NodeId)
	if err != nil {
		return 0, fuse.ToStatus(err)
	}
	defer h.mu.RUnlock()
	if h.appended && in.WriteFlags&fuse.WRITE_CACHE == 0 && len(data) > 0 {
		// Others may append too, on the host or in another guest. A page of a mapping has its place, though.
		n, err := unix.Pwritev2(h.fd, [][]byte{data}, 0, unix.RWF_APPEND)
		if err != unix.EOPNOTSUPP {
			return uint32(max(n, 0)), fuse.ToStatus(err)
		}
	}
	n, err := openat.WriteAll(h.fd, data, int64(in.Offset))
	if n > 0 {
		err = nil // the rest is tried again, and fails again
	}
	return uint32(n), fuse.ToStatus(err)
}

func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := f.handle(in.Fh, in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer h.mu.RUnlock()
	if in.FsyncFlags&1 != 0 {
		return fuse.ToStatus(unix.Fdatasync(h.fd))
	}
	return fuse.ToStatus(unix.Fsync(h.fd))
}

func (f *FS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.Fsync(cancel, in)
}

func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h, err := f.handle(in.Fh, in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer h.mu.RUnlock()
	return fuse.ToStatus(unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length)))
}

func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	h, err := f.handle(in.Fh, in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer h.mu.RUnlock()
	if h.n.key.kind != unix.S_IFREG {
		return fuse.EINVAL
	}
	at, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(at)
	return fuse.ToStatus(err)
}
