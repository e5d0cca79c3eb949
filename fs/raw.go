package fs

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// forever is a validity that outlives any kernel; the kernel clamps it (fs/fuse/dir.c, fuse_time_to_jiffies).
const forever = 1 << 32 // seconds

// provisional is how long the kernel may keep a directory's attributes that a streaming layer can still change, in
// seconds. It asks for them at every step of every path; of other files they are asked for each time.
const provisional = 1

// server answers a kernel's requests from a tree. Node ids are the tree's IDs, so that it keeps no state and forgets
// nothing; what it cannot do is answered ENOSYS, which the kernel remembers and does not ask again: OPEN, OPENDIR, FLUSH,
// RELEASE and ACCESS cost no round trip (fs/fuse/file.c, fc->no_open; needs the capabilities of ServerOptions).
type server struct {
	fuse.RawFileSystem // answers ENOSYS
	tree               *Tree
	results            sync.Pool // of *readResult
	requests           requests
}

// Raw returns a read-only file system that shows t. Its Writes and the like answer EROFS or ENOSYS.
func Raw(t *Tree) fuse.RawFileSystem {
	return &server{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		tree:          t,
		results:       sync.Pool{New: func() any { return new(readResult) }},
		requests:      requests{pool: sync.Pool{New: func() any { return new(request) }}},
	}
}

func (s *server) String() string { return "msb" }

// status translates an error for the kernel.
func status(err error) fuse.Status { return fuse.Status(Errno(err)) }

// setAttr fills in what stat shows of id.
func setAttr(out *fuse.Attr, id ID, a *Attr) {
	out.Ino = id
	out.Size = uint64(a.Size)
	out.Blocks = (uint64(a.Size) + 511) / 512
	out.Atime, out.Mtime, out.Ctime = uint64(a.Mtime.Sec), uint64(a.Mtime.Sec), uint64(a.Mtime.Sec)
	out.Atimensec, out.Mtimensec, out.Ctimensec = a.Mtime.Nsec, a.Mtime.Nsec, a.Mtime.Nsec
	out.Mode, out.Nlink = a.Mode, a.Nlink
	out.Uid, out.Gid, out.Rdev = a.UID, a.GID, a.Rdev
	out.Blksize = blockSize
}

// blockSize is the preferred size of reads, st_blksize.
const blockSize = 4096

func validity(a *Attr) uint64 {
	switch {
	case !a.Provisional:
		return forever
	case a.IsDir():
		return provisional
	default:
		return 0
	}
}

func setEntry(out *fuse.EntryOut, id ID, a *Attr) {
	out.NodeId = id
	out.EntryValid, out.AttrValid = forever, validity(a)
	setAttr(&out.Attr, id, a)
}

// Lookup is certain when it answers, so that the kernel may keep the answer for ever, that there is nothing too.
func (s *server) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := s.requests.begin(cancel, in.Pid)
	defer ctx.end()
	id, a, err := s.tree.Lookup(ctx, in.NodeId, name)
	if errors.Is(err, syscall.ENOENT) {
		out.NodeId, out.EntryValid = 0, forever
		return fuse.OK
	}
	if err != nil {
		return status(err)
	}
	setEntry(out, id, &a)
	return fuse.OK
}

func (s *server) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := s.requests.begin(cancel, in.Pid)
	defer ctx.end()
	a, err := s.tree.Attr(ctx, in.NodeId)
	if err != nil {
		return status(err)
	}
	out.AttrValid = validity(&a)
	setAttr(&out.Attr, in.NodeId, &a)
	return fuse.OK
}

func (s *server) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	ctx := s.requests.begin(cancel, in.Pid)
	defer ctx.end()
	target, err := s.tree.Readlink(ctx, in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	return []byte(target), fuse.OK
}

// Open, OpenDir, Flush and Access have nothing to say.
func (s *server) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

func (s *server) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

func (s *server) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

func (s *server) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

func (s *server) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	ctx := s.requests.begin(cancel, in.Pid)
	defer ctx.end()
	n, err := s.tree.ReadAt(ctx, in.NodeId, buf[:min(len(buf), int(in.Size))], int64(in.Offset))
	if err != nil {
		return nil, status(err)
	}
	r := s.results.Get().(*readResult)
	r.data, r.pool = buf[:n], &s.results
	return r, fuse.OK
}

// readResult is bytes that are in the request's own buffer.
type readResult struct {
	data []byte
	pool *sync.Pool
}

func (r *readResult) Bytes([]byte) ([]byte, fuse.Status) { return r.data, fuse.OK }
func (r *readResult) Size() int                          { return len(r.data) }
func (r *readResult) Done() {
	r.data = nil
	r.pool.Put(r)
}

// The first two offsets of a directory stream are "." and "..".
const dots = 2

func (s *server) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	ctx := s.requests.begin(cancel, in.Pid)
	defer ctx.end()
	return s.readDir(ctx, in, func(name string, id ID, a Attr, off uint64) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: name, Mode: a.Mode, Ino: id, Off: off})
	})
}

func (s *server) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	ctx := s.requests.begin(cancel, in.Pid)
	defer ctx.end()
	return s.readDir(ctx, in, func(name string, id ID, a Attr, off uint64) bool {
		e := out.AddDirLookupEntry(fuse.DirEntry{Name: name, Mode: a.Mode, Ino: id, Off: off})
		if e == nil {
			return false
		}
		if name != "." && name != ".." { // of which the kernel wants no entry
			setEntry(e, id, &a)
		}
		return true
	})
}

// readDir lists a directory from in.Offset on, "." and ".." first.
func (s *server) readDir(ctx context.Context, in *fuse.ReadIn, add func(name string, id ID, a Attr, off uint64) bool) fuse.Status {
	dir := Attr{Mode: syscall.S_IFDIR}
	off := in.Offset
	if off > MaxLayers*MaxEntries+dots {
		return fuse.OK
	}
	if off == 0 {
		if !add(".", in.NodeId, dir, 1) {
			return fuse.OK
		}
		off = 1
	}
	if off == 1 {
		if !add("..", s.tree.Parent(in.NodeId), dir, 2) {
			return fuse.OK
		}
		off = 2
	}
	return status(s.tree.readDir(ctx, in.NodeId, int(off)-dots, func(i int, name string, id ID, a Attr) bool {
		return add(name, id, a, uint64(i)+dots+1)
	}))
}

// GetXAttr says ENOSYS where no file of the tree has an attribute: the kernel will not ask again.
func (s *server) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if s.tree.plain() {
		return 0, fuse.ENOSYS
	}
	ctx := s.requests.begin(cancel, in.Pid)
	defer ctx.end()
	n, st := uint32(0), fuse.OK
	err := s.tree.withXattr(ctx, in.NodeId, name, func(v []byte) {
		n = uint32(len(v))
		if len(v) > len(dest) {
			st = fuse.ERANGE
			return
		}
		copy(dest, v)
	})
	if err != nil {
		return 0, status(err)
	}
	return n, st
}

// ListXAttr answers with an empty list where GetXAttr says ENOSYS: programs that compare files take ENOTSUP for a failure.
func (s *server) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if s.tree.plain() {
		return 0, fuse.OK
	}
	ctx := s.requests.begin(cancel, in.Pid)
	defer ctx.end()
	names, err := s.tree.Listxattr(ctx, in.NodeId)
	if err != nil {
		return 0, status(err)
	}
	n := 0
	for _, x := range names {
		n += len(x) + 1
	}
	if n > len(dest) {
		return uint32(n), fuse.ERANGE
	}
	at := 0
	for _, x := range names {
		at += copy(dest[at:], x)
		dest[at] = 0
		at++
	}
	return uint32(n), fuse.OK
}

// StatFs describes a full, read-only file system.
func (s *server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, maxName
	if f := s.tree.flat.Load(); f != nil {
		out.Blocks = (f.header.Bytes + blockSize - 1) / blockSize
		out.Files = uint64(len(f.nodes) - 1)
		runtime.KeepAlive(f)
	}
	return fuse.OK
}
