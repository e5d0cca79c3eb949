package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Bits of the descriptor and ring flags, of virtio 1.2 sections 2.7.5 to 2.7.8.
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	descSize = 16

	availNoInterrupt = 1
	usedNoNotify     = 1
)

// maxQueueSize is the largest split ring that virtio allows; QEMU's end at 1024.
const maxQueueSize = 32768

// A ring is a split virtqueue in guest memory. All of it may change at any time; what is read is read once and checked.
// The 16-bit words that both sides poll are read and written with sequentially consistent atomics, which are the
// barriers that the specification asks for. The byte order is the host's, which must be little-endian.
//
// It is guarded by its queue's mutex.
type ring struct {
	size  uint32 // descriptors, a power of two; 0 when the ring cannot be used
	desc  []byte
	avail []byte
	used  []byte

	eventIndex bool // VIRTIO_F_EVENT_IDX

	lastAvail uint16 // of the driver's requests, the next one to take
	usedIndex uint16 // of the answers, the next one to give
	quiet     bool   // without event index: the driver has been told not to kick
}

// ringAddresses are where the front end says that the parts of a ring are, in its own addresses.
type ringAddresses struct {
	desc, avail, used uint64
}

// errBadRing is a ring that does not fit into the guest's memory, or not its alignment (virtio 1.2, section 2.7).
var errBadRing = errors.New("virtqueue outside of guest memory")

// place finds the parts of a ring of size descriptors in t. Indices are as before.
func (r *ring) place(t *memory, a ringAddresses, size uint32) error {
	r.size = 0
	if a.desc%16 != 0 || a.avail%2 != 0 || a.used%4 != 0 {
		return fmt.Errorf("%w: unaligned address", errBadRing)
	}
	var err [3]error
	n := uint64(size)
	r.desc, err[0] = t.user(a.desc, n*descSize)
	r.avail, err[1] = t.user(a.avail, 4+2*n+2)
	r.used, err[2] = t.user(a.used, 4+8*n+2)
	for _, e := range err {
		if e != nil {
			return fmt.Errorf("%w: %v", errBadRing, e)
		}
	}
	r.size = size
	return nil
}

// start makes the ring ready for pop, from lastAvail on. The next answer's place is where the driver believes it to be.
func (r *ring) start() {
	r.usedIndex = load16(r.used, 2)
	r.quiet = false
}

// errBrokenRing is a driver that broke the rules in a way that leaves no request to answer.
var errBrokenRing = errors.New("broken virtqueue")

// pop takes the next request and returns the index of its first descriptor; ok is false when there is none.
func (r *ring) pop() (head uint16, ok bool, err error) {
	if r.size == 0 {
		return 0, false, nil
	}
	pending := load16(r.avail, 2) - r.lastAvail
	if pending == 0 {
		return 0, false, nil
	}
	if uint32(pending) > r.size {
		return 0, false, fmt.Errorf("%w: %d requests in a queue of %d", errBrokenRing, pending, r.size)
	}
	slot := uint32(r.lastAvail) & (r.size - 1)
	head = binary.LittleEndian.Uint16(r.avail[4+2*slot:])
	if uint32(head) >= r.size {
		return 0, false, fmt.Errorf("%w: descriptor %d in a queue of %d", errBrokenRing, head, r.size)
	}
	r.lastAvail++
	return head, true, nil
}

// arm asks the driver to kick when it adds a request. It returns false when one has come meanwhile, of which there will
// be no kick.
func (r *ring) arm() bool {
	if r.size == 0 {
		return true
	}
	if r.eventIndex {
		store16(r.used, 4+8*int(r.size), r.lastAvail)
	} else {
		r.quiet = false
		r.storeUsed()
	}
	return load16(r.avail, 2) == r.lastAvail
}

// disarm asks the driver not to kick. With the event index there is nothing to do: it kicks once for each arm.
func (r *ring) disarm() {
	if r.size != 0 && !r.eventIndex && !r.quiet {
		r.quiet = true
		r.storeUsed()
	}
}

// push gives the request that began at descriptor head back to the driver, with n bytes written. It returns true when
// the driver wants to be interrupted for it.
func (r *ring) push(head uint16, n uint32) bool {
	if r.size == 0 {
		return false
	}
	slot := 4 + 8*(uint32(r.usedIndex)&(r.size-1))
	binary.LittleEndian.PutUint32(r.used[slot:], uint32(head))
	binary.LittleEndian.PutUint32(r.used[slot+4:], n)
	r.usedIndex++
	r.storeUsed()
	if r.eventIndex {
		// vring_need_event of section 2.7.10, for this one answer: it is the one that the driver waits for.
		return load16(r.avail, 4+2*int(r.size)) == r.usedIndex-1
	}
	return load16(r.avail, 0)&availNoInterrupt == 0
}

// storeUsed publishes flags and index of the used ring, which are one aligned word and both ours.
func (r *ring) storeUsed() {
	w := uint32(r.usedIndex) << 16
	if r.quiet {
		w |= usedNoNotify
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&r.used[0])), w)
}

// load16 reads the 16-bit word at b[off], which lies in guest memory at an even address. There are no 16-bit atomics, so
// the aligned 32-bit word around it is read; mappings begin and end at multiples of 8, so that word is guest memory too.
func load16(b []byte, off int) uint16 {
	w, shift := wordAround(b, off)
	return uint16(atomic.LoadUint32(w) >> shift)
}

// store16 writes the 16-bit word at b[off] and leaves the other half of the aligned word around it as it is. A guest
// that writes to that half all the time can make it fail, to its own loss.
func store16(b []byte, off int, v uint16) {
	w, shift := wordAround(b, off)
	for range 1000 {
		old := atomic.LoadUint32(w)
		if atomic.CompareAndSwapUint32(w, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}

func wordAround(b []byte, off int) (w *uint32, shift uint) {
	p := unsafe.Pointer(&b[off])
	odd := uintptr(p) & 2
	return (*uint32)(unsafe.Add(p, -int(odd))), uint(odd) * 8
}
