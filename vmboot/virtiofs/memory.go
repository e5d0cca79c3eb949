package virtiofs

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	maxRegions    = 32       // memory slots offered to the front end
	maxRegionSize = 16 << 40 // bytes; the address space we can map is 128 TiB
)

// A mapping is a piece of guest memory in our address space. It is unmapped when the last table that shows it is released.
type mapping struct {
	whole []byte // as mmap gave it, from a page boundary of the file
	refs  atomic.Int64
}

func (m *mapping) release() {
	if m.refs.Add(-1) == 0 {
		unix.Munmap(m.whole)
	}
}

// A region is a run of guest memory. Its fields are immutable.
type region struct {
	guest uint64 // guest-physical address; what descriptors hold
	user  uint64 // address in the front end; what SET_VRING_ADDR holds
	size  uint64
	data  []byte // size bytes of m
	m     *mapping
}

// A memory is the guest's memory table: immutable, shared by everything that uses addresses of the guest, and counted,
// because a front end may replace the table while requests still read and write by the old one.
type memory struct {
	regions []region // by guest address, disjoint
	refs    atomic.Int64
}

// newMemory makes a table of regions and takes a reference on each of their mappings. The caller holds one reference.
func newMemory(regions []region) (*memory, error) {
	t := &memory{regions: slices.SortedFunc(slices.Values(regions), func(a, b region) int {
		if a.guest < b.guest {
			return -1
		}
		return 1
	})}
	for i := 1; i < len(t.regions); i++ {
		if a, b := t.regions[i-1], t.regions[i]; b.guest-a.guest < a.size {
			return nil, fmt.Errorf("memory regions overlap: %#x+%#x and %#x", a.guest, a.size, b.guest)
		}
	}
	for i := range t.regions {
		t.regions[i].m.refs.Add(1)
	}
	t.refs.Store(1)
	return t, nil
}

func (t *memory) acquire() *memory {
	t.refs.Add(1)
	return t
}

func (t *memory) release() {
	if t.refs.Add(-1) == 0 {
		for i := range t.regions {
			t.regions[i].m.release()
		}
	}
}

// find is the region that holds guest address addr, or nil.
func (t *memory) find(addr uint64) *region {
	for i := range t.regions {
		if r := &t.regions[i]; addr-r.guest < r.size {
			return r
		}
	}
	return nil
}

// appendGuest appends the n bytes at guest address addr to iov. They are one slice, unless they cross from one region
// into the next; a run that follows the last slice of iov without a gap prolongs it, because guests describe buffers page
// by page and file systems like them long.
func (t *memory) appendGuest(iov [][]byte, addr, n uint64) ([][]byte, error) {
	for n > 0 {
		r := t.find(addr)
		if r == nil {
			return iov, fmt.Errorf("address %#x is not guest memory", addr)
		}
		off := addr - r.guest
		run := min(n, r.size-off)
		piece := r.data[off : off+run : r.size]
		if last := len(iov) - 1; last >= 0 && follows(iov[last], piece) {
			iov[last] = iov[last][:len(iov[last])+len(piece)]
		} else {
			iov = append(iov, piece)
		}
		addr += run
		n -= run
	}
	return iov, nil
}

// follows says that b starts where a ends, in the same mapping.
func follows(a, b []byte) bool {
	return cap(a) > len(a) && &a[:len(a)+1][len(a)] == &b[0]
}

// user is the n bytes at address addr of the front end. They must lie in one region.
func (t *memory) user(addr, n uint64) ([]byte, error) {
	for i := range t.regions {
		r := &t.regions[i]
		if off := addr - r.user; off < r.size {
			if n > r.size-off {
				break
			}
			return r.data[off : off+n : off+n], nil
		}
	}
	return nil, fmt.Errorf("%#x+%d is not guest memory", addr, n)
}

// mapRegion maps size bytes from offset of the file fd, which stays the caller's. The caller holds the one reference on
// the region's mapping.
func mapRegion(guest, size, user, offset uint64, fd int) (region, error) {
	r := region{guest: guest, user: user, size: size}
	if size == 0 || size > maxRegionSize || size%8 != 0 || offset > maxRegionSize || guest+size < guest || user+size < user {
		return r, fmt.Errorf("impossible region: address %#x, size %#x, offset %#x", guest, size, offset)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return r, fmt.Errorf("fstat of guest memory: %w", err)
	}
	if offset+size > uint64(max(st.Size, 0)) {
		return r, fmt.Errorf("region of %#x bytes at %#x in a file of %#x", size, offset, st.Size)
	}
	// Touching a page beyond the end of a file that was cut short kills the process that does it, which is all guests'.
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return r, errors.New("guest memory is not sealed against shrinking; give the machine a memory-backend-memfd with share=on,seal=on")
	}
	// The offset of a mapping must be a multiple of the page size of the file, which is its block size when the pages are huge.
	page := uint64(max(st.Blksize, 4096))
	if page&(page-1) != 0 {
		return r, fmt.Errorf("guest memory with a page size of %d", page)
	}
	delta := offset & (page - 1)
	length := (delta + size + page - 1) &^ (page - 1)
	whole, err := unix.Mmap(fd, int64(offset-delta), int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return r, fmt.Errorf("mmap of guest memory: %w", err)
	}
	if delta%8 != 0 {
		unix.Munmap(whole)
		return r, fmt.Errorf("region at odd offset %#x", offset)
	}
	r.m = &mapping{whole: whole}
	r.m.refs.Store(1)
	r.data = whole[delta : delta+size : delta+size]
	return r, nil
}
