package virtiofs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The guest memory of a front end: two regions, the second one far away in guest-physical and user addresses.
const (
	lowGuest   = 0x0
	lowUser    = 0x7f00_0000_0000
	highGuest  = 0x1_0000_0000
	highUser   = 0x7e00_0000_0000
	regionSize = 8 << 20
)

// A frontend stands in for a VMM and the guest in it: it speaks vhost-user and drives virtqueues in shared memory.
type frontend struct {
	tb     testing.TB
	conn   *net.UnixConn
	memfd  int
	mem    []byte // both regions, one after the other
	next   uint64 // guest address of the next free byte of the low region
	queues []*driverQueue
}

// backend is a Serve under way.
type backend struct {
	path   string
	cancel context.CancelFunc
	done   chan error
}

// startBackend serves one front end on a socket in a temporary directory.
func startBackend(tb testing.TB, open func(context.Context) (fuse.RawFileSystem, error), o Options) *backend {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &backend{path: path, cancel: cancel, done: make(chan error, 1)}
	go func() {
		err := Serve(ctx, ln, open, o)
		ln.Close()
		b.done <- err
	}()
	tb.Cleanup(cancel)
	return b
}

// wait is what Serve returned.
func (b *backend) wait(tb testing.TB) error {
	tb.Helper()
	select {
	case err := <-b.done:
		return err
	case <-time.After(20 * time.Second):
		panic("Serve does not return") // with all stacks
	}
}

func opened(raw fuse.RawFileSystem) func(context.Context) (fuse.RawFileSystem, error) {
	return func(context.Context) (fuse.RawFileSystem, error) { return raw, nil }
}

// dial connects a front end with memory and no queues.
func dial(tb testing.TB, path string) *frontend {
	tb.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	f := &frontend{tb: tb, conn: conn}
	f.memfd, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		tb.Fatal(err)
	}
	if err := unix.Ftruncate(f.memfd, 2*regionSize); err != nil {
		tb.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(f.memfd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		tb.Fatal(err)
	}
	if f.mem, err = unix.Mmap(f.memfd, 0, 2*regionSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		tb.Fatal(err)
	}
	f.next = 0x1000
	return f
}

// close is what a killed VMM does.
func (f *frontend) close() {
	f.conn.Close()
	for _, q := range f.queues {
		unix.Close(q.kick)
		unix.Close(q.call)
	}
	f.queues = nil
	if f.mem != nil {
		unix.Munmap(f.mem)
		unix.Close(f.memfd)
		f.mem = nil
	}
}

// send sends a message. It fails the test when the back end has hung up.
func (f *frontend) send(kind uint32, flags uint32, payload []byte, files ...int) {
	f.tb.Helper()
	if err := f.trySend(kind, flags, payload, files...); err != nil {
		f.tb.Fatalf("send request %d: %v", kind, err)
	}
}

func (f *frontend) trySend(kind uint32, flags uint32, payload []byte, files ...int) error {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, flags|flagVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	_, _, err := f.conn.WriteMsgUnix(append(b, payload...), oob, nil)
	return err
}

// receive is the payload of the next answer, which must be to a message of that kind.
func (f *frontend) receive(kind uint32) []byte {
	f.tb.Helper()
	p, err := f.tryReceive(kind)
	if err != nil {
		f.tb.Fatal(err)
	}
	return p
}

func (f *frontend) tryReceive(kind uint32) ([]byte, error) {
	f.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	var h [headerSize]byte
	if _, err := readFull(f.conn, h[:]); err != nil {
		return nil, fmt.Errorf("answer to request %d: %w", kind, err)
	}
	if k := binary.LittleEndian.Uint32(h[0:]); k != kind {
		return nil, fmt.Errorf("answer to request %d instead of %d", k, kind)
	}
	if fl := binary.LittleEndian.Uint32(h[4:]); fl != flagVersion|flagReply {
		return nil, fmt.Errorf("answer with flags %#x", fl)
	}
	p := make([]byte, binary.LittleEndian.Uint32(h[8:]))
	_, err := readFull(f.conn, p)
	return p, err
}

func readFull(c net.Conn, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := c.Read(p[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// ask sends a message that is answered with a number.
func (f *frontend) ask(kind uint32) uint64 {
	f.tb.Helper()
	f.send(kind, 0, nil)
	return binary.LittleEndian.Uint64(f.receive(kind))
}

// acked sends a message that asks for an acknowledgement.
func (f *frontend) acked(kind uint32, payload []byte, files ...int) {
	f.tb.Helper()
	f.send(kind, flagNeedReply, payload, files...)
	if v := binary.LittleEndian.Uint64(f.receive(kind)); v != 0 {
		f.tb.Fatalf("request %d was refused", kind)
	}
}

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func state(i, v int) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, uint32(i)), uint32(v))
}

func regionBytes(guest, size, user, offset uint64) (b []byte) {
	for _, v := range []uint64{guest, size, user, offset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func memTable() []byte {
	b := state(2, 0)
	b = append(b, regionBytes(lowGuest, regionSize, lowUser, 0)...)
	return append(b, regionBytes(highGuest, regionSize, highUser, regionSize)...)
}

// handshake negotiates features and hands over the memory.
func (f *frontend) handshake(features uint64) {
	f.tb.Helper()
	if got := f.ask(msgGetFeatures); got&features != features {
		f.tb.Fatalf("offered features %#x, want %#x", got, features)
	}
	if got := f.ask(msgGetProtocolFeatures); got != ourProtocol {
		f.tb.Fatalf("offered protocol features %#x", got)
	}
	f.send(msgSetProtocolFeatures, 0, u64(ourProtocol))
	f.send(msgSetOwner, 0, nil)
	f.send(msgSetFeatures, 0, u64(features))
	f.acked(msgSetMemTable, memTable(), f.memfd, f.memfd)
}

// A driverQueue is the driver's side of a virtqueue.
type driverQueue struct {
	f          *frontend
	index      int
	size       int
	desc       uint64
	avail      uint64
	used       uint64
	kick, call int
	eventIndex bool

	availIndex uint16
	usedIndex  uint16
	free       []uint16 // heads of descriptors; each request here uses a run of perChain descriptors
}

// addQueue lays out queue number index with size descriptors and starts it.
func (f *frontend) addQueue(index, size int, eventIndex bool) *driverQueue {
	f.tb.Helper()
	q := &driverQueue{f: f, index: index, size: size, eventIndex: eventIndex, kick: -1, call: -1}
	q.desc = f.alloc(16*size, 16)
	q.avail = f.alloc(6+2*size, 2)
	q.used = f.alloc(6+8*size, 4)
	f.queues = append(f.queues, q)
	q.start(0)
	return q
}

// start sets the queue up and starts it, as QEMU 7.2 does, at the given index.
func (q *driverQueue) start(base int) {
	q.f.tb.Helper()
	f := q.f
	if q.kick < 0 {
		q.kick, q.call = eventfd(f.tb), eventfd(f.tb)
	}
	if err := q.tryStart(base); err != nil {
		f.tb.Fatal(err)
	}
	f.acked(msgSetVringEnable, state(q.index, 1))
}

// stop is what QEMU does when the guest resets the device, and when it ends.
func (q *driverQueue) stop() (base int) {
	q.f.tb.Helper()
	q.f.send(msgSetVringEnable, 0, state(q.index, 0))
	q.f.send(msgGetVringBase, 0, state(q.index, 0))
	p := q.f.receive(msgGetVringBase)
	if i := binary.LittleEndian.Uint32(p); int(i) != q.index {
		q.f.tb.Fatalf("base of queue %d instead of %d", i, q.index)
	}
	return int(binary.LittleEndian.Uint32(p[4:]))
}

// clear is a driver that begins anew: the ring is empty and its indices are 0.
func (q *driverQueue) clear() {
	clear(q.f.bytes(q.desc, 16*q.size))
	clear(q.f.bytes(q.avail, 6+2*q.size))
	clear(q.f.bytes(q.used, 6+8*q.size))
	q.availIndex, q.usedIndex = 0, 0
}

func eventfd(tb testing.TB) int {
	tb.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	return fd
}

// alloc takes n bytes of the low region.
func (f *frontend) alloc(n, align int) uint64 {
	f.tb.Helper()
	a := (f.next + uint64(align) - 1) &^ (uint64(align) - 1)
	f.next = a + uint64(n)
	if f.next > regionSize {
		f.tb.Fatal("guest memory is used up")
	}
	return a
}

// bytes are n bytes of guest memory.
func (f *frontend) bytes(addr uint64, n int) []byte {
	if addr >= highGuest {
		addr = addr - highGuest + regionSize
	}
	return f.mem[addr : addr+uint64(n)]
}

func (q *driverQueue) setDesc(i int, addr uint64, n int, flags, next int) {
	b := q.f.bytes(q.desc+16*uint64(i), 16)
	putDesc(b, addr, n, flags, next)
}

func putDesc(b []byte, addr uint64, n int, flags, next int) {
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], uint32(n))
	binary.LittleEndian.PutUint16(b[12:], uint16(flags))
	binary.LittleEndian.PutUint16(b[14:], uint16(next))
}

func word(b []byte) *uint32 { return (*uint32)(unsafe.Pointer(&b[0])) }

// offer publishes head and kicks if the back end wants that.
func (q *driverQueue) offer(head int) {
	a := q.f.bytes(q.avail, 6+2*q.size)
	binary.LittleEndian.PutUint16(a[4+2*(int(q.availIndex)%q.size):], uint16(head))
	q.availIndex++
	store16(a, 2, q.availIndex)
	if q.wantsKick() {
		q.doKick()
	}
}

func (q *driverQueue) wantsKick() bool {
	u := q.f.bytes(q.used, 6+8*q.size)
	if q.eventIndex {
		return load16(u, 4+8*q.size) == q.availIndex-1
	}
	return load16(u, 0)&usedNoNotify == 0
}

func (q *driverQueue) doKick() { unix.Write(q.kick, u64(1)) }

// poll takes one answer, without waiting.
func (q *driverQueue) poll() (head, n int, ok bool) {
	u := q.f.bytes(q.used, 6+8*q.size)
	if load16(u, 2) == q.usedIndex {
		return 0, 0, false
	}
	e := u[4+8*(int(q.usedIndex)%q.size):]
	q.usedIndex++
	return int(binary.LittleEndian.Uint32(e)), int(binary.LittleEndian.Uint32(e[4:])), true
}

var errNoAnswer = errors.New("no answer")

// wait takes one answer and sleeps on the call descriptor until there is one: a lost interrupt is a hang.
func (q *driverQueue) wait(timeout time.Duration) (head, n int, err error) {
	deadline := time.Now().Add(timeout)
	a := q.f.bytes(q.avail, 6+2*q.size)
	for {
		if q.eventIndex {
			store16(a, 4+2*q.size, q.usedIndex)
		}
		if head, n, ok := q.poll(); ok {
			return head, n, nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return 0, 0, errNoAnswer
		}
		p := []unix.PollFd{{Fd: int32(q.call), Events: unix.POLLIN}}
		unix.Poll(p, int(left.Milliseconds())+1)
		var b [8]byte
		unix.Read(q.call, b[:])
	}
}

// roundTrip sends one request in the descriptors from 0 on and returns the reply's bytes.
func (q *driverQueue) roundTrip(in []byte, room int) ([]byte, error) {
	out := q.put(0, [][]byte{in}, []int{room})
	q.offer(0)
	head, n, err := q.wait(20 * time.Second)
	if err != nil {
		return nil, err
	}
	if head != 0 || n > room {
		return nil, fmt.Errorf("answer of %d bytes to descriptor %d", n, head)
	}
	return q.f.bytes(out[0], n), nil
}

// put makes a chain from descriptor first on: in readable, then rooms writable. The buffers are in fixed places that
// depend on first only, so that chains of different first (4 apart) do not share them.
func (q *driverQueue) put(first int, in [][]byte, rooms []int) (out []uint64) {
	base := q.buffer(first, 0)
	i := first
	last := first + len(in) + len(rooms) - 1
	add := func(addr uint64, n, flags int) {
		if i < last {
			flags |= descNext
		}
		q.setDesc(i, addr, n, flags, i+1)
		i++
	}
	for _, b := range in {
		copy(q.f.bytes(base, len(b)), b)
		add(base, len(b), 0)
		base += uint64(len(b)+63) &^ 63
	}
	for _, n := range rooms {
		out = append(out, base)
		add(base, n, descWrite)
		base += uint64(n+63) &^ 63
	}
	return out
}

// buffer is where put has the buffer that follows n bytes of a chain from descriptor first.
func (q *driverQueue) buffer(first, n int) uint64 {
	return uint64(highGuest) + uint64(first)*4*8192 + uint64(q.index)*(regionSize/4) + uint64(n+63)&^63
}

var uniques atomic.Uint64

// fuseRequest is a request with the given fixed part after the header, and payload.
func fuseRequest(op uint32, node uint64, body ...[]byte) []byte {
	n := inHeaderSize
	for _, b := range body {
		n += len(b)
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(n))
	b = binary.LittleEndian.AppendUint32(b, op)
	b = binary.LittleEndian.AppendUint64(b, uniques.Add(1))
	b = binary.LittleEndian.AppendUint64(b, node)
	b = append(b, make([]byte, inHeaderSize-24)...)
	for _, x := range body {
		b = append(b, x...)
	}
	return b
}

func initRequest() []byte {
	b := make([]byte, 64)
	binary.LittleEndian.PutUint32(b[0:], 7)
	binary.LittleEndian.PutUint32(b[4:], 41)
	binary.LittleEndian.PutUint32(b[8:], 128<<10)
	binary.LittleEndian.PutUint32(b[12:], 0x7fffffff)
	return fuseRequest(opInit, 0, b)
}

func lookupRequest(parent uint64, name string) []byte {
	return fuseRequest(opLookup, parent, []byte(name), []byte{0})
}

func readRequest(node uint64, off int64, size int) []byte {
	b := make([]byte, 40)
	binary.LittleEndian.PutUint64(b[8:], uint64(off))
	binary.LittleEndian.PutUint32(b[16:], uint32(size))
	return fuseRequest(opRead, node, b)
}

// status is the error of a reply, 0 when it is none.
func status(reply []byte) syscall.Errno {
	if len(reply) < outHeaderSize {
		return syscall.EPROTO
	}
	return syscall.Errno(-int32(binary.LittleEndian.Uint32(reply[4:])))
}
