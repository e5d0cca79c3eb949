package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// maxTransfer bounds each direction of a request: the largest READ and WRITE that Linux sends (256 pages) and what goes
// around them.
const maxTransfer = 1<<20 + 1<<16

// A chain is one request as its descriptors say: the bytes the driver has written for us and those we may write. The
// descriptors have been copied and checked; the bytes are guest memory and change when the guest likes.
type chain struct {
	head   uint16
	in     [][]byte
	out    [][]byte
	inLen  int
	outLen int

	writable bool // a writable buffer has been seen, perhaps an empty one
}

// errBadChain is a request that cannot be read. Its first descriptor is good, so it can be given back.
var errBadChain = errors.New("bad descriptor chain")

// read makes c the chain that begins at descriptor head of the table desc. It may have at most limit buffers, so a chain
// that loops ends. c keeps its slices between calls.
func (c *chain) read(t *memory, desc []byte, head uint16, limit int) error {
	*c = chain{head: head, in: c.in[:0], out: c.out[:0]}
	table, indirect := desc, false
	d := loadDescriptor(table, uint32(head))
	for range limit {
		if d.flags&descIndirect != 0 {
			if indirect {
				return fmt.Errorf("%w: an indirect table in an indirect table", errBadChain)
			}
			var err error
			if table, err = indirectTable(t, d); err != nil {
				return fmt.Errorf("%w: indirect table: %v", errBadChain, err)
			}
			indirect = true
			if d = loadDescriptor(table, 0); d.flags&descIndirect != 0 {
				return fmt.Errorf("%w: an indirect table in an indirect table", errBadChain)
			}
		}
		if err := c.add(t, d); err != nil {
			return fmt.Errorf("%w: %v", errBadChain, err)
		}
		if d.flags&descNext == 0 {
			return nil
		}
		if int(d.next) >= len(table)/descSize {
			return fmt.Errorf("%w: descriptor %d of %d", errBadChain, d.next, len(table)/descSize)
		}
		d = loadDescriptor(table, uint32(d.next))
	}
	return fmt.Errorf("%w: more than %d buffers", errBadChain, limit)
}

// indirectTable is the table that d points to (virtio 1.2, section 2.7.5.3).
func indirectTable(t *memory, d descriptor) ([]byte, error) {
	if d.flags&descNext != 0 {
		return nil, errors.New("its descriptor has a successor")
	}
	if d.len == 0 || d.len%descSize != 0 || d.len/descSize > maxQueueSize {
		return nil, fmt.Errorf("%d bytes", d.len)
	}
	r := t.find(d.addr)
	if r == nil {
		return nil, fmt.Errorf("address %#x is not guest memory", d.addr)
	}
	off := d.addr - r.guest
	if uint64(d.len) > r.size-off {
		return nil, fmt.Errorf("%#x+%d crosses the end of a memory region", d.addr, d.len)
	}
	return r.data[off : off+uint64(d.len)], nil
}

// add appends the buffer of one descriptor.
func (c *chain) add(t *memory, d descriptor) (err error) {
	n := int(d.len)
	if d.flags&descWrite != 0 {
		c.writable = true
		if c.outLen += n; c.outLen > maxTransfer {
			return fmt.Errorf("more than %d writable bytes", maxTransfer)
		}
		c.out, err = t.appendGuest(c.out, d.addr, uint64(n))
		return err
	}
	if c.writable {
		return errors.New("a readable buffer after a writable one")
	}
	if c.inLen += n; c.inLen > maxTransfer {
		return fmt.Errorf("more than %d readable bytes", maxTransfer)
	}
	c.in, err = t.appendGuest(c.in, d.addr, uint64(n))
	return err
}

// A descriptor is a copy of an entry of a descriptor table (virtio 1.2, section 2.7.5).
type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// loadDescriptor copies entry i of a table before anything in it is looked at.
func loadDescriptor(table []byte, i uint32) descriptor {
	var b [descSize]byte
	copy(b[:], table[i*descSize:])
	return descriptor{
		addr:  binary.LittleEndian.Uint64(b[0:]),
		len:   binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]),
		next:  binary.LittleEndian.Uint16(b[14:]),
	}
}
