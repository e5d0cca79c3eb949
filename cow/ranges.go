package cow

import (
	"math/bits"

	"golang.org/x/sys/unix"
)

const (
	// blockSize is the unit in which a file's bytes are the lower's or its own.
	blockSize = 4096
	// smallFile is how large a lower file is at most that is copied whole when it is first written to: that costs less
	// than a map, and one chunk is fetched for it anyway.
	smallFile = 64 << 10

	// A map in ranges/ is this magic, then one bit per block, lowest first.
	mapMagic = "msb-fs ranges 1\n"
)

// content says which bytes of an upper file are still the lower's. All is guarded by the mu of the file's node.
//
// The map only ever gains bits, each after its block was written. base may shrink in memory without being recorded, for
// whoever reads the records takes the lesser of it and the file's size; before the file grows again it is recorded.
type content struct {
	mapNode node // the map's place, for its descriptor
	lower   uint64

	base     int64    // bytes from here on are the file's own
	recorded int64    // base on disk
	size     int64    // of the file
	loaded   bool     // size and owned are known
	owned    []uint64 // a bit for each block; grows as needed
	left     int64    // blocks below base that are not owned

	counted int64 // bytes that the quota counts for the map; guarded by quota.mu
}

func newContent(n *node, base int64) *content {
	c := &content{lower: n.lower, base: base, recorded: base}
	c.mapNode.kind = unix.S_IFREG
	return c
}

// load reads the map and the size of a file that was copied up before.
func (f *FS) load(n *node, h *handle) error {
	c := n.data
	if c.loaded {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		return err
	}
	c.size = st.Size
	c.base = min(c.base, c.size)
	c.owned = make([]uint64, blocks(c.base)/64+1)
	m, err := f.mapHandle(c, false)
	switch err {
	case nil:
		defer f.handles.release(m)
		f.quota.knows(c, m.fd)
		buf := make([]byte, len(c.owned)*8)
		if _, err := readFull(m.fd, buf, int64(len(mapMagic))); err != nil {
			return err
		}
		for i, b := range buf {
			c.owned[i/8] |= uint64(b) << (i % 8 * 8)
		}
	case unix.ENOENT:
	default:
		return err
	}
	c.count()
	c.loaded = true
	return nil
}

func blocks(size int64) int64 { return (size + blockSize - 1) / blockSize }

// count finds how many blocks below base are not owned.
func (c *content) count() {
	n := blocks(c.base)
	c.left = n
	for i, w := range c.owned {
		if rest := n - int64(i)*64; rest < 64 {
			w &= 1<<max(rest, 0) - 1
		}
		c.left -= int64(bits.OnesCount64(w))
	}
}

// owns reports whether a block is the file's own.
func (c *content) owns(block int64) bool {
	if block*blockSize >= c.base {
		return true
	}
	return c.owned[block/64]>>(block%64)&1 != 0
}

// run is the end of the stretch from off on, up to end, that is all the file's own or all the lower's.
func (c *content) run(off, end int64) (stop int64, own bool) {
	if off >= c.base {
		return end, true
	}
	b := off / blockSize
	own = c.owns(b)
	for stop = off; stop < min(end, c.base) && c.owns(b) == own; b++ {
		stop = min(end, (b+1)*blockSize)
	}
	if !own {
		// The lower may end within a block; what follows is the file's own.
		stop = min(stop, c.base)
	}
	return stop, own
}

// own marks the blocks that begin in [off, end) as the file's, in memory and on disk. They have been written.
func (f *FS) own(n *node, off, end int64) error {
	c := n.data
	first, last := off/blockSize, blocks(min(end, c.base))
	if first >= last {
		return nil
	}
	changed := false
	for b := first; b < last; b++ {
		if bit := uint64(1) << (b % 64); c.owned[b/64]&bit == 0 {
			c.owned[b/64] |= bit
			c.left--
			changed = true
		}
	}
	if !changed {
		return nil
	}
	if c.left == 0 {
		return f.complete(n)
	}
	m, err := f.mapHandle(c, true)
	if err != nil {
		return err
	}
	defer f.handles.release(m)
	from := first / 8
	buf := make([]byte, (last-1)/8+1-from)
	for i := range buf {
		b := from + int64(i)
		buf[i] = byte(c.owned[b/8] >> (b % 8 * 8))
	}
	_, err = writeAll(m.fd, buf, int64(len(mapMagic))+from)
	f.quota.mapped(c, m.fd)
	return err
}

// complete records that the file needs the lower's content no more.
func (f *FS) complete(n *node) error {
	if h := f.handles.get(n); h != nil {
		// Its blocks are to be allocated by then: otherwise, after a power failure, the record could be there without them.
		_ = unix.SyncFileRange(h.fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		f.handles.release(h)
	}
	if err := f.recordBase(n, 0); err != nil {
		return err
	}
	c := n.data
	c.base, c.left, c.owned = 0, 0, nil
	f.handles.drop(&c.mapNode)
	place{f.upper.rangesHandle.fd, privateName(c.lower)}.unlink()
	f.quota.mapped(c, -1)
	return nil
}

func (f *FS) recordBase(n *node, base int64) error {
	f.tree.RLock()
	defer f.tree.RUnlock()
	p, done, err := f.at(n)
	if err != nil {
		return err
	}
	defer done()
	if err := p.setxattr(recordPrefix+"origin", []byte(formatOrigin(n.lower, base)), 0); err != nil {
		return err
	}
	n.data.recorded = base
	return nil
}

// grow is called before the file becomes larger: what was cut off must not come back.
func (f *FS) grow(n *node, size int64) error {
	c := n.data
	if size > c.size && c.recorded > c.base {
		if err := f.recordBase(n, c.base); err != nil {
			return err
		}
	}
	return nil
}

// shrunk is called when the file has become smaller.
func (c *content) shrunk(size int64) {
	c.size = size
	if size < c.base {
		c.base = size
		c.count()
	}
}

// mapHandle opens a file's map, making it first if wanted.
func (f *FS) mapHandle(c *content, make bool) (*handle, error) {
	if h := f.handles.get(&c.mapNode); h != nil {
		return h, nil
	}
	p := place{f.upper.rangesHandle.fd, privateName(c.lower)}
	flags := unix.O_RDWR | unix.O_NONBLOCK
	if make {
		flags |= unix.O_CREAT
	}
	fd, err := p.open(flags, 0o600)
	if err != nil {
		return nil, err
	}
	if make {
		if _, err := writeAll(fd, []byte(mapMagic), 0); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return f.handles.put(&c.mapNode, fd), nil
}
