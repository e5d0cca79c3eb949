package virtiofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const allFeatures = featIndirectDesc | featEventIndex | featProtocolFeatures | featVersion1

// testFS has one file, "file", node 2, of fileSize bytes; "block", node 3, whose reads wait until they are cancelled or
// release is closed; "panic", whose lookup panics; and node 4, the results of whose reads panic.
type testFS struct {
	fuse.RawFileSystem
	release chan struct{}
	blocked chan struct{} // one for each read of "block" that has begun
	forgets chan uint64
}

const fileSize = 1 << 20

func newTestFS() *testFS {
	return &testFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		release:       make(chan struct{}),
		blocked:       make(chan struct{}, 1000),
		forgets:       make(chan uint64, 1000),
	}
}

func content(off int64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		x := off + int64(i)
		b[i] = byte(x) ^ byte(x>>8) ^ byte(x>>16)
	}
	return b
}

func (t *testFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	switch name {
	case "file":
		out.NodeId = 2
	case "block":
		out.NodeId = 3
	case "panic":
		panic("as asked")
	default:
		return fuse.ENOENT
	}
	return fuse.OK
}

func (t *testFS) Forget(node, n uint64) { t.forgets <- node }

func (t *testFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if in.NodeId == 3 {
		t.blocked <- struct{}{}
		select {
		case <-cancel:
			return nil, fuse.EINTR
		case <-t.release:
		}
	}
	if in.NodeId == 4 {
		return panicResult{}, fuse.OK
	}
	n := max(min(int64(len(buf)), fileSize-int64(in.Offset)), 0)
	copy(buf, content(int64(in.Offset), int(n)))
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// A panicResult is a ReadResult that panics.
type panicResult struct{}

func (panicResult) Bytes([]byte) ([]byte, fuse.Status) { panic("as asked") }
func (panicResult) Size() int                          { return 10 }
func (panicResult) Done()                              {}

// connect is a back end and a front end with the high-priority queue and one request queue, after INIT.
func connect(t testing.TB, fs *testFS, o Options) (*backend, *frontend) {
	t.Helper()
	b := startBackend(t, opened(fs), o)
	f := dial(t, b.path)
	t.Cleanup(f.close)
	f.handshake(allFeatures)
	f.addQueue(0, 64, true)
	f.addQueue(1, 64, true)
	reply, err := f.queues[1].roundTrip(initRequest(), 256)
	if err != nil || status(reply) != 0 {
		t.Fatalf("INIT: %v, %v", err, status(reply))
	}
	return b, f
}

// finish disconnects and expects that all is well.
func finish(t testing.TB, b *backend, f *frontend) {
	t.Helper()
	f.close()
	if err := b.wait(t); err != nil {
		t.Fatalf("Serve: %v", err)
	}
}

func TestServe(t *testing.T) {
	fs := newTestFS()
	inits := 0
	b, f := connect(t, fs, Options{OnInit: func() { inits++ }})
	q := f.queues[1]

	reply, err := q.roundTrip(lookupRequest(1, "file"), 256)
	if err != nil || status(reply) != 0 || reply[outHeaderSize] != 2 {
		t.Fatalf("LOOKUP: %v, %x", err, reply)
	}
	if reply, err = q.roundTrip(lookupRequest(1, "none"), 256); err != nil || status(reply) != syscall.ENOENT {
		t.Fatalf("LOOKUP of nothing: %v, %x", err, reply)
	}
	if reply, err = q.roundTrip(lookupRequest(1, "panic"), 256); err != nil || status(reply) != syscall.EIO {
		t.Fatalf("LOOKUP that panics: %v, %x", err, reply)
	}
	for _, n := range []int{1, 4096, 128 << 10, 1 << 20} {
		reply, err = q.roundTrip(readRequest(2, 12345, n), n+outHeaderSize)
		if want := content(12345, min(n, fileSize-12345)); err != nil || !bytes.Equal(reply[outHeaderSize:], want) {
			t.Fatalf("READ of %d bytes: %v, %d bytes", n, err, len(reply))
		}
	}
	if inits != 1 {
		t.Errorf("OnInit was called %d times", inits)
	}

	forget := fuseRequest(opForget, 2, u64(1))
	f.queues[0].put(0, [][]byte{forget}, nil)
	f.queues[0].offer(0)
	if node := <-fs.forgets; node != 2 {
		t.Errorf("forgot node %d", node)
	}
	if _, n, err := f.queues[0].wait(20 * time.Second); err != nil || n != 0 {
		t.Errorf("FORGET: %v, %d bytes", err, n)
	}
	finish(t, b, f)
}

// A request that waits holds up neither those after it nor the other queue, and ends when the front end goes.
func TestBlockedRequests(t *testing.T) {
	fs := newTestFS()
	b, f := connect(t, fs, Options{InFlight: 9})
	q := f.queues[1]
	for i := 1; i < 8; i++ {
		q.put(4*i, [][]byte{readRequest(3, 0, 4096)}, []int{4096 + outHeaderSize})
		q.offer(4 * i)
		<-fs.blocked
	}
	// With one worker left over, everything else goes on.
	for range 100 {
		if reply, err := q.roundTrip(lookupRequest(1, "file"), 256); err != nil || status(reply) != 0 {
			t.Fatalf("LOOKUP beside 7 blocked requests: %v, %x", err, reply)
		}
	}
	finish(t, b, f)
}

// A front end that replaces the call descriptor, as QEMU does when the guest masks interrupts, misses none.
func TestCallReplaced(t *testing.T) {
	b, f := connect(t, newTestFS(), Options{})
	fd := eventfd(t)
	defer unix.Close(fd)
	f.send(msgSetVringCall, 0, u64(1), fd)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20000); err != nil || n != 1 {
		t.Errorf("the new descriptor was not signalled: %d, %v", n, err)
	}
	finish(t, b, f)
}

// No more requests are worked on than Options.InFlight says; the others stay in the ring and are not lost.
func TestInFlight(t *testing.T) {
	fs := newTestFS()
	b, f := connect(t, fs, Options{InFlight: 5}) // one of them for the high-priority queue
	q := f.queues[1]
	for i := range 10 {
		q.put(4*i, [][]byte{readRequest(3, 0, 4096)}, []int{4096 + outHeaderSize})
		q.offer(4 * i)
	}
	for range 4 {
		<-fs.blocked
	}
	select {
	case <-fs.blocked:
		t.Error("a fifth request is in progress")
	case <-time.After(50 * time.Millisecond):
	}
	close(fs.release)
	for i := range 10 {
		if _, n, err := q.wait(20 * time.Second); err != nil || n != 4096+outHeaderSize {
			t.Fatalf("READ %d: %v, %d bytes", i, err, n)
		}
	}
	finish(t, b, f)
}

// A panic of the file system is EIO for its request, and an error to be told of, up to a number of them.
func TestPanics(t *testing.T) {
	var faults faultLog
	b, f := connect(t, newTestFS(), Options{OnFault: faults.add})
	q := f.queues[1]
	for range 2 * maxFaults {
		if reply, err := q.roundTrip(lookupRequest(1, "panic"), 256); err != nil || status(reply) != syscall.EIO {
			t.Fatalf("a method that panics: %v, %x", err, reply)
		}
		if reply, err := q.roundTrip(readRequest(4, 0, 4096), 8192); err != nil || status(reply) != syscall.EIO {
			t.Fatalf("a result that panics: %v, %x", err, reply)
		}
	}
	finish(t, b, f)
	if n := len(faults.faults); n != maxFaults || !faults.has("as asked") {
		t.Errorf("told of %d panics: %q", n, faults.faults[0])
	}
}

func TestOpen(t *testing.T) {
	t.Run("late", func(t *testing.T) {
		ready := make(chan struct{})
		b := startBackend(t, func(ctx context.Context) (fuse.RawFileSystem, error) {
			<-ready
			return newTestFS(), nil
		}, Options{})
		f := dial(t, b.path)
		defer f.close()
		f.handshake(allFeatures)
		q := f.addQueue(1, 64, true)
		q.put(0, [][]byte{initRequest()}, []int{256})
		q.offer(0)
		if _, _, err := q.wait(50 * time.Millisecond); err == nil {
			t.Fatal("INIT was answered before there was a file system")
		}
		close(ready)
		if _, _, err := q.wait(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		finish(t, b, f)
	})
	t.Run("fails", func(t *testing.T) {
		fail := make(chan struct{})
		want := errors.New("no such image")
		b := startBackend(t, func(ctx context.Context) (fuse.RawFileSystem, error) {
			<-fail
			return nil, want
		}, Options{})
		f := dial(t, b.path)
		defer f.close()
		f.handshake(allFeatures)
		q := f.addQueue(1, 64, true)
		q.put(0, [][]byte{initRequest()}, []int{256})
		q.offer(0)
		close(fail)
		if err := b.wait(t); err != want {
			t.Fatalf("Serve: %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		b := startBackend(t, func(ctx context.Context) (fuse.RawFileSystem, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, Options{})
		b.cancel()
		if err := b.wait(t); err != context.Canceled {
			t.Fatalf("Serve: %v", err)
		}
	})
}

// A cancelled Serve leaves the listener to the next one, which serves a front end that connects again.
func TestServeAgain(t *testing.T) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	fs := newTestFS()
	for i := range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Serve(ctx, ln, opened(fs), Options{}) }()
		if i%2 == 0 { // cancelled while it waits for a front end, or soon after
			cancel()
			if err := <-done; err != context.Canceled {
				t.Fatalf("Serve: %v", err)
			}
			continue
		}
		f := dial(t, ln.Addr().String())
		f.handshake(allFeatures)
		q := f.addQueue(1, 64, true)
		if reply, err := q.roundTrip(initRequest(), 256); err != nil || status(reply) != 0 {
			t.Fatalf("INIT: %v, %x", err, reply)
		}
		q.put(0, [][]byte{readRequest(3, 0, 10)}, []int{10 + outHeaderSize})
		q.offer(0)
		<-fs.blocked
		cancel() // while a request is in progress
		if err := <-done; err != context.Canceled {
			t.Fatalf("Serve: %v", err)
		}
		f.close()
	}
}

// Stopping a queue answers what is in progress, or keeps it for when the queue goes on.
func TestStop(t *testing.T) {
	fs := newTestFS()
	b, f := connect(t, fs, Options{})
	q := f.queues[1]
	q.put(4, [][]byte{readRequest(3, 0, 4096)}, []int{4096 + outHeaderSize})
	q.offer(4)
	<-fs.blocked
	base := q.stop()
	if base != 2 {
		t.Fatalf("stopped at %d", base)
	}
	if _, _, ok := q.poll(); ok {
		t.Fatal("the interrupted request was answered")
	}
	close(fs.release)
	q.start(base) // goes on, as after a pause
	head, n, err := q.wait(20 * time.Second)
	if err != nil || head != 4 || n != 4096+outHeaderSize {
		t.Fatalf("after the pause: %v, descriptor %d, %d bytes", err, head, n)
	}
	if base = q.stop(); base != 2 {
		t.Fatalf("stopped at %d", base)
	}
	q.clear() // a reboot
	q.start(0)
	if reply, err := q.roundTrip(initRequest(), 256); err != nil || status(reply) != 0 {
		t.Fatalf("INIT after a reboot: %v, %x", err, reply)
	}
	finish(t, b, f)
}

// A guest that reboots begins its ring at 0. That this is where the old ring was stopped, because indices wrap around,
// does not make the old ring's interrupted requests the new one's.
func TestRebootWhereStopped(t *testing.T) {
	fs := newTestFS()
	b, f := connect(t, fs, Options{})
	q := f.queues[1]
	q.stop()
	q.clear()
	q.availIndex, q.usedIndex = 0xffff, 0xffff
	store16(f.bytes(q.avail, 4), 2, 0xffff)
	store16(f.bytes(q.used, 4), 2, 0xffff)
	q.start(0xffff)
	q.put(4, [][]byte{readRequest(3, 0, 4096)}, []int{4096 + outHeaderSize})
	q.offer(4)
	<-fs.blocked
	if base := q.stop(); base != 0 {
		t.Fatalf("stopped at %d", base)
	}
	q.clear()
	q.start(0)
	for range 3 {
		if reply, err := q.roundTrip(initRequest(), 256); err != nil || status(reply) != 0 {
			t.Fatalf("INIT after the reboot: %v, %x", err, reply)
		}
	}
	finish(t, b, f)
}

// With the longer form negotiated, 8 bytes that are mostly zero come before the name.
func TestSetxattrForms(t *testing.T) {
	for _, extended := range []bool{false, true} {
		set := new(fuse.MountOptions)
		if extended {
			set.ExtraCapabilities = fuse.CAP_SETXATTR_EXT
		}
		kept := &xattrFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), set: make(chan string, 1)}
		b := startBackend(t, opened(kept), Options{FUSE: set})
		f := dial(t, b.path)
		t.Cleanup(f.close)
		f.handshake(allFeatures)
		f.addQueue(0, 64, true)
		f.addQueue(1, 64, true)
		if reply, err := f.queues[1].roundTrip(initRequest(), 256); err != nil || status(reply) != 0 {
			t.Fatalf("INIT: %v, %v", err, status(reply))
		}
		fixed := binary.LittleEndian.AppendUint32(nil, 3)
		fixed = append(fixed, make([]byte, 4)...)
		if extended {
			fixed = append(fixed, make([]byte, 8)...)
		}
		reply, err := f.queues[1].roundTrip(fuseRequest(opSetxattr, 1, fixed, []byte("user.x\x00abc")), 256)
		if err != nil || status(reply) != 0 {
			t.Fatalf("extended %v: %v, %v", extended, err, status(reply))
		}
		if got := <-kept.set; got != "user.x=abc" {
			t.Errorf("extended %v: %q", extended, got)
		}
		finish(t, b, f)
	}
}

// xattrFS tells which attribute is set.
type xattrFS struct {
	fuse.RawFileSystem
	set chan string
}

func (x *xattrFS) SetXAttr(_ <-chan struct{}, _ *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	x.set <- name + "=" + string(value)
	return fuse.OK
}
