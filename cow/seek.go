package cow

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lseek finds data and holes. What is the lower's counts as data.
func (f *FS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fail(err)
	}
	off, hole := int64(in.Offset), in.Whence == unix.SEEK_HOLE
	if n.kind != unix.S_IFREG || !hole && in.Whence != unix.SEEK_DATA {
		return fuse.EINVAL
	}
	at, err := f.seek(request(cancel), n, off, hole)
	out.Offset = uint64(at)
	return fail(err)
}

func (f *FS) seek(ctx context.Context, n *node, off int64, hole bool) (int64, error) {
	if !n.up.Load() {
		a, err := f.lower.Attr(ctx, n.lower)
		switch {
		case err != nil:
			return 0, err
		case off < 0 || off >= a.Size:
			return 0, unix.ENXIO
		case hole:
			return a.Size, nil
		}
		return off, nil
	}
	h, err := f.fileHandle(n)
	if err != nil {
		return 0, err
	}
	defer f.handles.release(h)
	whence := unix.SEEK_DATA
	if hole {
		whence = unix.SEEK_HOLE
	}
	if n.data == nil {
		return unix.Seek(h.fd, off, whence)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := f.load(n, h); err != nil {
		return 0, err
	}
	c := n.data
	if off < 0 || off >= c.size {
		return 0, unix.ENXIO
	}
	for off < c.size {
		stop, own := c.run(off, c.size)
		if !own {
			if !hole {
				return off, nil
			}
			off = stop
			continue
		}
		at, err := unix.Seek(h.fd, off, whence)
		if err == nil && at < stop {
			return at, nil
		}
		if err != nil && err != unix.ENXIO {
			return 0, err
		}
		off = stop
	}
	if hole {
		return c.size, nil
	}
	return 0, unix.ENXIO
}

// CopyFileRange lets the host copy between two files that are wholly in the upper, sharing blocks where it can. For the
// rest the kernel reads and writes.
func (f *FS) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	n, err := f.copyRange(request(cancel), in)
	return uint32(n), fail(err)
}

// maxCopy is how much one CopyFileRange copies at most: the answer is 32 bits long, and others wait meanwhile.
const maxCopy = 64 << 20

func (f *FS) copyRange(ctx context.Context, in *fuse.CopyFileRangeIn) (int, error) {
	from, err := f.node(in.NodeId)
	if err != nil {
		return 0, err
	}
	to, err := f.node(in.NodeIdOut)
	if err != nil {
		return 0, err
	}
	whole := func(n *node) bool { return n.kind == unix.S_IFREG && n.up.Load() && n.data == nil }
	if !whole(from) || !whole(to) || f.quota != nil || int64(in.OffIn) < 0 || int64(in.OffOut) < 0 {
		return 0, unix.EOPNOTSUPP
	}
	if err := f.written(ctx, to, false); err != nil { // the kernel took setuid bits before
		return 0, err
	}
	src, err := f.fileHandle(from)
	if err != nil {
		return 0, err
	}
	defer f.handles.release(src)
	dst, err := f.fileHandle(to)
	if err != nil {
		return 0, err
	}
	defer f.handles.release(dst)
	offIn, offOut := int64(in.OffIn), int64(in.OffOut)
	return unix.CopyFileRange(src.fd, &offIn, dst.fd, &offOut, int(min(in.Len, maxCopy)), 0)
}
