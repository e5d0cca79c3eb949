package cow

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Read answers from the lower while the file is only there, else from the upper, whose missing blocks are the lower's.
func (f *FS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := f.node(in.NodeId)
	if err != nil {
		return nil, fail(err)
	}
	if n.kind != unix.S_IFREG {
		return nil, fuse.EINVAL
	}
	buf = buf[:min(len(buf), int(in.Size))]
	if int64(in.Offset) < 0 {
		return nil, fuse.EINVAL
	}
	got, err := f.readAt(request(cancel), n, buf, int64(in.Offset))
	if err != nil {
		return nil, fail(err)
	}
	return fuse.ReadResultData(buf[:got]), fuse.OK
}

func (f *FS) readAt(ctx context.Context, n *node, p []byte, off int64) (int, error) {
	if !n.up.Load() {
		return f.lower.ReadAt(ctx, n.lower, p, off)
	}
	h, err := f.fileHandle(n)
	if err != nil {
		return 0, err
	}
	defer f.handles.release(h)
	if n.data == nil {
		return readFull(h.fd, p, off)
	}
	return f.readMixed(ctx, n, h, p, off)
}

// readMixed reads a file that is partly the lower's. What may have to come over the network is read before the lock is
// taken; blocks that the file came to own meanwhile are read again, and none can have gone the other way.
func (f *FS) readMixed(ctx context.Context, n *node, h *handle, p []byte, off int64) (int, error) {
	c := n.data
	n.mu.Lock()
	err := f.load(n, h)
	var stretches [][2]int64
	for at, end := off, min(off+int64(len(p)), c.base); err == nil && at < end; {
		stop, own := c.run(at, end)
		if !own {
			stretches = append(stretches, [2]int64{at, stop})
		}
		at = stop
	}
	n.mu.Unlock()
	if err != nil {
		return 0, err
	}
	for _, s := range stretches {
		if err := f.readLower(ctx, n, p[s[0]-off:s[1]-off], s[0]); err != nil {
			return 0, err
		}
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	end := min(off+int64(len(p)), c.size)
	for at := off; at < end; {
		stop, own := c.run(at, end)
		if own {
			part := p[at-off : stop-off]
			got, err := readFull(h.fd, part, at)
			if err != nil {
				return 0, err
			}
			clear(part[got:])
		}
		at = stop
	}
	return int(max(0, end-off)), nil
}

// readLower fills p from the lower.
func (f *FS) readLower(ctx context.Context, n *node, p []byte, off int64) error {
	got, err := f.lower.ReadAt(ctx, n.lower, p, off)
	if err == nil && got < len(p) {
		err = unix.EIO
	}
	return err
}

// Write copies up what it needs and writes to the upper.
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, err := f.node(in.NodeId)
	if err != nil {
		return 0, fail(err)
	}
	if n.kind != unix.S_IFREG || int64(in.Offset) < 0 {
		return 0, fuse.EINVAL
	}
	ctx := request(cancel)
	err = f.written(ctx, n, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0)
	if err != nil {
		return 0, fail(err)
	}
	wrote, err := f.writeAt(ctx, n, data, int64(in.Offset))
	if wrote > 0 {
		return uint32(wrote), fuse.OK
	}
	return 0, fail(err)
}

// written takes from a file that is to be written to what a write takes: its capabilities, and where the writer has not
// the privilege to keep them its setuid and setgid bits.
func (f *FS) written(ctx context.Context, n *node, killSetid bool) error {
	if err := f.copyUp(ctx, n); err != nil {
		return err
	}
	f.tree.RLock()
	todo := n.caps || killSetid && n.over != nil && n.over.mode&(unix.S_ISUID|unix.S_ISGID) != 0
	f.tree.RUnlock()
	if !todo {
		return nil
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	p, done, err := f.at(n)
	if err != nil {
		return err
	}
	defer done()
	return f.dropPrivileges(n, p, killSetid)
}

func (f *FS) writeAt(ctx context.Context, n *node, data []byte, off int64) (int, error) {
	h, err := f.fileHandle(n)
	if err != nil {
		return 0, err
	}
	defer f.handles.release(h)
	end := off + int64(len(data))
	if err := f.quota.before(n, h, off, end); err != nil {
		return 0, err
	}
	defer f.quota.after(n, h)
	if n.data == nil {
		return writeAll(h.fd, data, off)
	}
	unlock, err := f.fill(ctx, n, h, off, end)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if err := f.grow(n, end); err != nil {
		return 0, err
	}
	wrote, err := writeAll(h.fd, data, off)
	n.data.size = max(n.data.size, off+int64(wrote))
	if wrote > 0 {
		// A block that was written half is not owned: then the lower still shows, as before the write.
		stop := off + int64(wrote)
		if stop < end {
			stop = stop / blockSize * blockSize
		}
		if e := f.own(n, off/blockSize*blockSize, stop); e != nil {
			return 0, e
		}
	}
	return wrote, err
}

// fill prepares a file for a change of [off, end): the rest of the blocks at both ends is brought from the lower, and a
// small file altogether. It returns with n.mu locked. The blocks are not owned yet.
func (f *FS) fill(ctx context.Context, n *node, h *handle, off, end int64) (unlock func(), err error) {
	c := n.data
	n.mu.Lock()
	if err := f.load(n, h); err != nil {
		n.mu.Unlock()
		return nil, err
	}
	for {
		from, to := c.missing(off, end)
		if from >= to {
			return n.mu.Unlock, nil
		}
		n.mu.Unlock()
		buf := make([]byte, to-from)
		err := f.readLower(ctx, n, buf, from)
		n.mu.Lock()
		if err == nil && c.base >= to { // else it was cut off meanwhile
			err = f.adopt(n, h, buf, from)
		}
		if err != nil {
			n.mu.Unlock()
			return nil, err
		}
	}
}

// missing is the next stretch that must be copied from the lower before [off, end) is changed.
func (c *content) missing(off, end int64) (from, to int64) {
	if c.base == 0 {
		return 0, 0
	}
	if c.base <= smallFile && c.left == blocks(c.base) {
		return 0, c.base
	}
	for _, edge := range [2]int64{off, end} {
		b := edge / blockSize
		if edge%blockSize != 0 && !c.owns(b) && (edge == off || end < c.base) {
			return b * blockSize, min((b+1)*blockSize, c.base)
		}
	}
	return 0, 0
}

// adopt writes bytes that came from the lower, where they are not owned yet, and owns them.
func (f *FS) adopt(n *node, h *handle, buf []byte, from int64) error {
	c := n.data
	for at, end := from, from+int64(len(buf)); at < end && at < c.base; {
		stop, own := c.run(at, end)
		if !own {
			if _, err := writeAll(h.fd, buf[at-from:stop-from], at); err != nil {
				return err
			}
		}
		at = stop
	}
	return f.own(n, from, from+int64(len(buf)))
}

// truncate sets the size of a file. Nothing is read for it but what remains of a block.
func (f *FS) truncate(ctx context.Context, n *node, size int64) error {
	if n.kind != unix.S_IFREG || size < 0 {
		return unix.EINVAL
	}
	if err := f.copyUp(ctx, n); err != nil {
		return err
	}
	h, err := f.fileHandle(n)
	if err != nil {
		return err
	}
	defer f.handles.release(h)
	if err := f.quota.before(n, h, 0, 0); err != nil {
		return err
	}
	defer f.quota.after(n, h)
	if n.data == nil {
		return unix.Ftruncate(h.fd, size)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := f.load(n, h); err != nil {
		return err
	}
	if err := f.grow(n, size); err != nil {
		return err
	}
	if err := unix.Ftruncate(h.fd, size); err != nil {
		return err
	}
	n.data.shrunk(size)
	if size == 0 && n.data.recorded > 0 {
		return f.complete(n)
	}
	return nil
}

// Fallocate reserves space, and punches and zeroes ranges.
func (f *FS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	const punch, zero, keep = unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_KEEP_SIZE
	n, err := f.node(in.NodeId)
	if err != nil {
		return fail(err)
	}
	off, end := int64(in.Offset), int64(in.Offset+in.Length)
	if n.kind != unix.S_IFREG || off < 0 || end <= off {
		return fuse.EINVAL
	}
	if in.Mode&^(punch|zero|keep) != 0 {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	ctx := request(cancel)
	if err := f.written(ctx, n, false); err != nil {
		return fail(err)
	}
	h, err := f.fileHandle(n)
	if err != nil {
		return fail(err)
	}
	defer f.handles.release(h)
	if in.Mode&punch == 0 {
		err = f.quota.before(n, h, off, end)
	} else {
		err = f.quota.before(n, h, 0, 0)
	}
	if err != nil {
		return fail(err)
	}
	defer f.quota.after(n, h)
	if n.data == nil {
		return fail(unix.Fallocate(h.fd, in.Mode, off, end-off))
	}
	return fail(f.fallocateMixed(ctx, n, h, in.Mode, off, end))
}

func (f *FS) fallocateMixed(ctx context.Context, n *node, h *handle, mode uint32, off, end int64) error {
	empties := mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0
	from, to := off, end
	if !empties {
		from, to = 0, 0 // what is the lower's stays so
	}
	unlock, err := f.fill(ctx, n, h, from, to)
	if err != nil {
		return err
	}
	defer unlock()
	c := n.data
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		if err := f.grow(n, end); err != nil {
			return err
		}
	}
	if err := unix.Fallocate(h.fd, mode, off, end-off); err != nil {
		return err
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		c.size = max(c.size, end)
	}
	if empties {
		return f.own(n, off/blockSize*blockSize, end)
	}
	return nil
}

// Fsync brings a file to the disk: its bytes before the map that makes them count.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fail(err)
	}
	if !n.up.Load() || n.kind != unix.S_IFREG {
		return fuse.OK
	}
	h, err := f.fileHandle(n)
	if err != nil {
		return fail(err)
	}
	defer f.handles.release(h)
	if in.FsyncFlags&1 != 0 { // FUSE_FSYNC_FDATASYNC
		err = unix.Fdatasync(h.fd)
	} else {
		err = unix.Fsync(h.fd)
	}
	if err != nil || n.data == nil {
		return fail(err)
	}
	n.mu.RLock()
	partial := n.data.loaded && n.data.base > 0
	n.mu.RUnlock()
	if !partial {
		return fuse.OK
	}
	m, err := f.mapHandle(n.data, false)
	if err == unix.ENOENT {
		return fuse.OK
	}
	if err != nil {
		return fail(err)
	}
	defer f.handles.release(m)
	return fail(unix.Fsync(m.fd))
}

// FsyncDir brings a directory to the disk.
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fail(err)
	}
	f.tree.RLock()
	defer f.tree.RUnlock()
	if !n.up.Load() || n.gone || n.kind != unix.S_IFDIR {
		return fuse.OK
	}
	h, err := f.dirHandle(n)
	if err != nil {
		return fail(err)
	}
	defer f.handles.release(h)
	return fail(unix.Fsync(h.fd))
}

// Release ends the one open file that the kernel tells about, an O_TMPFILE: nothing is held for it.
func (f *FS) Release(<-chan struct{}, *fuse.ReleaseIn) {}
