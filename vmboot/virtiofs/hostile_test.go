package virtiofs

import (
	"bytes"
	"encoding/binary"
	"log"
	"math"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A front end that breaks the protocol is told so, and nothing of what it gave stays.
func TestBadFrontends(t *testing.T) {
	ok := func(f *frontend) { f.handshake(allFeatures) }
	vring := func(kind uint32, i, v int) func(*frontend) {
		return func(f *frontend) { ok(f); f.send(kind, 0, state(i, v)) }
	}
	addresses := func(desc, used, avail uint64) func(*frontend) {
		return func(f *frontend) {
			ok(f)
			f.send(msgSetVringNum, 0, state(1, 64))
			a := state(1, 0)
			for _, x := range []uint64{desc, used, avail, 0} {
				a = binary.LittleEndian.AppendUint64(a, x)
			}
			f.send(msgSetVringAddr, 0, a)
			f.send(msgSetVringEnable, 0, state(1, 1))
			fd := eventfd(f.tb)
			f.send(msgSetVringKick, 0, u64(1), fd)
			unix.Close(fd)
		}
	}
	for _, c := range []struct {
		name string
		do   func(*frontend)
		err  string // "" means that Serve returns nil
	}{
		{"goes at once", func(f *frontend) { f.conn.Close() }, ""},
		{"goes in the middle of a header", func(f *frontend) { f.conn.Write([]byte{1, 0, 0}); f.conn.Close() }, ""},
		{"goes in the middle of a payload", func(f *frontend) {
			f.conn.Write([]byte{2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1})
			f.conn.Close()
		}, ""},
		{"goes without reading the answer", func(f *frontend) { f.send(msgGetFeatures, 0, nil); f.conn.Close() }, ""},
		{"no version", func(f *frontend) { f.conn.Write(make([]byte, headerSize)) }, "malformed header"},
		{"a reply", func(f *frontend) { f.send(msgGetFeatures, flagReply, nil) }, "malformed header"},
		{"a reply with descriptors", func(f *frontend) { f.send(msgSetMemTable, flagReply, nil, f.memfd, f.memfd) }, "malformed header"},
		{"giant payload", func(f *frontend) {
			f.conn.Write(binary.LittleEndian.AppendUint32([]byte{2, 0, 0, 0, 1, 0, 0, 0}, math.MaxUint32))
		}, "malformed header"},
		{"unknown request", func(f *frontend) { f.send(1000, 0, nil) }, "request 1000: not supported"},
		{"features not offered", func(f *frontend) { f.send(msgSetFeatures, 0, u64(1<<34)) }, "were not offered"},
		{"protocol features not offered", func(f *frontend) { f.send(msgSetProtocolFeatures, 0, u64(1<<12)) }, "were not offered"},
		{"short payload", func(f *frontend) { f.send(msgSetFeatures, 0, []byte{1}) }, "payload of 1 bytes"},
		{"no such queue", vring(msgSetVringNum, 9, 64), "queue 9 of 9"},
		{"no such queue, giant", vring(msgGetVringBase, -1, 0), "queue 4294967295 of 9"},
		{"queue of 0", vring(msgSetVringNum, 1, 0), "no power of two"},
		{"queue of 65536", vring(msgSetVringNum, 1, 65536), "no power of two"},
		{"queue of 63", vring(msgSetVringNum, 1, 63), "no power of two"},
		{"base of 65536", vring(msgSetVringBase, 1, 65536), "index 65536"},
		{"ring unaligned", addresses(lowUser+8, lowUser+0x2000, lowUser+0x3000), "unaligned"},
		{"ring at 0", addresses(0, 0, 0), "outside of guest memory"},
		{"ring at a guest address", addresses(0x1000, 0x2000, 0x3000), "outside of guest memory"},
		{"ring over the end", addresses(lowUser+regionSize-1008, lowUser+0x2000, lowUser+0x3000), "outside of guest memory"},
		{"used over the end", addresses(lowUser, lowUser+regionSize-512, lowUser+0x3000), "outside of guest memory"},
		{"available over the end", addresses(lowUser, lowUser+0x3000, lowUser+regionSize-132), "outside of guest memory"},
		{"ring at the end of the address space", addresses(math.MaxUint64-15, lowUser+0x2000, lowUser+0x3000), "outside of guest memory"},
		{"started without being set up", func(f *frontend) {
			ok(f)
			f.send(msgSetVringEnable, 0, state(1, 1))
			f.send(msgSetVringKick, 0, u64(1), f.memfd)
		}, "before it was set up"},
		{"kick that is a file", func(f *frontend) {
			ok(f)
			file, err := os.CreateTemp(f.tb.TempDir(), "")
			if err != nil {
				f.tb.Fatal(err)
			}
			defer file.Close()
			q := f.addQueue(1, 64, true)
			q.stop()
			f.send(msgSetVringEnable, 0, state(1, 1))
			f.send(msgSetVringKick, 0, u64(1), int(file.Fd()))
		}, "kick descriptor"},
		{"kick without a descriptor", func(f *frontend) { f.send(msgSetVringKick, 0, u64(1)) }, "0 descriptors"},
		{"kick to be polled", func(f *frontend) { f.send(msgSetVringKick, 0, u64(1|noFile)) }, "polled"},
		{"two kicks", func(f *frontend) { ok(f); q := f.addQueue(1, 64, true); f.send(msgSetVringKick, 0, u64(1), q.kick) }, "is running"},
		{"resized while it runs", func(f *frontend) { ok(f); f.addQueue(1, 64, true); f.send(msgSetVringNum, 0, state(1, 128)) }, "is running"},
		{"memory without descriptors", func(f *frontend) { f.send(msgSetMemTable, 0, memTable()) }, "0 descriptors"},
		{"memory with a short table", func(f *frontend) { f.send(msgSetMemTable, 0, memTable()[:50], f.memfd, f.memfd) }, "50 bytes"},
		{"memory of a billion regions", func(f *frontend) { f.send(msgSetMemTable, 0, state(1<<30, 0)) }, "1073741824 regions"},
		{"memory that is no memory", func(f *frontend) {
			fd := eventfd(f.tb)
			f.send(msgSetMemTable, 0, memTable(), f.memfd, fd)
			unix.Close(fd)
		}, "in a file of 0x0"},
		{"a region twice", func(f *frontend) {
			ok(f)
			f.send(msgAddMemReg, 0, append(u64(0), regionBytes(lowGuest, regionSize, lowUser, 0)...), f.memfd)
		}, "overlap"},
		{"removes what is not there", func(f *frontend) {
			ok(f)
			f.send(msgRemMemReg, 0, append(u64(0), regionBytes(1<<50, regionSize, lowUser, 0)...))
		}, "no region"},
		{"nine descriptors", func(f *frontend) {
			m := f.memfd
			f.send(msgSetOwner, 0, nil, m, m, m, m, m, m, m, m, m)
		}, "9 descriptors"},
		{"descriptors nobody wants", func(f *frontend) {
			f.send(msgSetOwner, 0, nil, f.memfd, f.memfd)
			f.ask(msgGetFeatures)
			f.conn.Close()
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := openFiles(t)
			b := startBackend(t, opened(newTestFS()), Options{Queues: 8})
			f := dial(t, b.path)
			defer f.close()
			c.do(f)
			err := b.wait(t)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("Serve: %v, want an error that says %q", err, c.err)
			}
			f.close()
			if after := openFiles(t); after != before {
				t.Errorf("%d descriptors, %d before", after, before)
			}
		})
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// guestMappings counts the mappings of guest memory in this process.
func guestMappings(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "memfd:guest")
}

// faultLog collects what OnFault is told.
type faultLog struct {
	mu     sync.Mutex
	faults []string
}

func (l *faultLog) add(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, err.Error())
}

func (l *faultLog) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.faults {
		if strings.Contains(f, s) {
			return true
		}
	}
	return false
}

// A request that lies is answered with an error, or not at all, and the next one is served as ever.
func TestBadRequests(t *testing.T) {
	var printed bytes.Buffer
	log.SetOutput(&printed)
	defer func() {
		log.SetOutput(os.Stderr)
		if printed.Len() > 0 {
			t.Errorf("a guest can make us print: %s", &printed)
		}
	}()
	patch := func(b []byte, at int, v uint32) []byte {
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	none := syscall.Errno(0xffff) // no answer at all: zero bytes
	write := func(size uint32, data int) []byte {
		b := make([]byte, 40+data)
		return patch(fuseRequest(opWrite, 2, b), inHeaderSize+16, size)
	}
	setxattr := func(size uint32, rest string) []byte {
		return fuseRequest(opSetxattr, 2, binary.LittleEndian.AppendUint32(nil, size), make([]byte, 4), []byte(rest))
	}
	getxattr := func(size uint32) []byte {
		return fuseRequest(opGetxattr, 2, binary.LittleEndian.AppendUint32(nil, size), make([]byte, 4), []byte("user.x\x00"))
	}
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		name string
		in   []byte
		room int
		want syscall.Errno
	}{
		{"nothing", nil, 256, none},
		{"half a header", make([]byte, 20), 256, none},
		{"length too small", patch(lookupRequest(1, "file"), 0, 40), 256, syscall.EINVAL},
		{"length tiny", patch(lookupRequest(1, "file"), 0, 0), 256, syscall.EIO},
		{"length too big", patch(lookupRequest(1, "file"), 0, 1000), 256, syscall.EIO},
		{"length giant", patch(lookupRequest(1, "file"), 0, math.MaxUint32), 256, syscall.EIO},
		{"unknown opcode", fuseRequest(99, 1), 256, syscall.ENOSYS},
		{"giant opcode", fuseRequest(math.MaxUint32, 1), 256, syscall.ENOSYS},
		{"notification", fuseRequest(101, 1, make([]byte, 64)), 256, syscall.ENOSYS},
		{"notification reply", fuseRequest(41, 1, make([]byte, 64)), 256, syscall.ENOSYS},
		{"mapping", fuseRequest(48, 1, make([]byte, 64)), 256, syscall.ENOSYS},
		{"no name", fuseRequest(opLookup, 1), 256, syscall.EINVAL},
		{"empty name", lookupRequest(1, ""), 256, syscall.EINVAL},
		{"name without an end", fuseRequest(opLookup, 1, []byte("file")), 256, syscall.EINVAL},
		{"dot", lookupRequest(1, "."), 256, syscall.EINVAL},
		{"dot dot", lookupRequest(1, ".."), 256, syscall.EINVAL},
		{"path", lookupRequest(1, "a/b"), 256, syscall.EINVAL},
		{"long name", lookupRequest(1, long), 256, syscall.ENAMETOOLONG},
		{"longest name", lookupRequest(1, long[1:]), 256, syscall.ENOENT},
		{"mkdir ..", fuseRequest(opMkdir, 1, make([]byte, 8), []byte("..\x00")), 256, syscall.EINVAL},
		{"rename to a path", fuseRequest(opRename, 1, make([]byte, 8), []byte("a\x00../b\x00")), 256, syscall.EINVAL},
		{"rename with one name", fuseRequest(opRename2, 1, make([]byte, 16), []byte("a\x00")), 256, syscall.EINVAL},
		{"symlink without a target", fuseRequest(opSymlink, 1, []byte("a\x00")), 256, syscall.EINVAL},
		{"symlink to a path", fuseRequest(opSymlink, 1, []byte("a\x00../../b\x00")), 256, syscall.ENOSYS},
		{"create, short", fuseRequest(opCreate, 1, make([]byte, 8)), 256, syscall.EIO},
		{"reply without room", lookupRequest(1, "file"), 15, none},
		{"reply with too little room", lookupRequest(1, "file"), 16, syscall.EIO},
		{"read without room", readRequest(2, 0, 4096), 100, syscall.EIO},
		{"read of 4 GiB", readRequest(2, 0, math.MaxUint32), 4096, syscall.EIO},
		{"readdir of 4 GiB", patch(fuseRequest(opReaddir, 1, make([]byte, 40)), inHeaderSize+16, math.MaxUint32), 4096, syscall.EIO},
		{"write of more than there is", write(4096, 100), 256, syscall.EIO},
		{"write of 4 GiB", write(math.MaxUint32, 100), 256, syscall.EIO},
		{"write", write(100, 100), 256, syscall.ENOSYS},
		{"getxattr of 4 GiB", getxattr(math.MaxUint32), 256, syscall.EIO},
		{"getxattr", getxattr(0), 256, syscall.ENOSYS},
		{"setxattr longer than its value", setxattr(10, "user.x\x00abc"), 256, syscall.EIO},
		{"setxattr shorter than its value", setxattr(1, "user.x\x00abc"), 256, syscall.EIO},
		{"setxattr without a name", setxattr(3, "\x00abc"), 256, syscall.EIO},
		{"setxattr", setxattr(3, "user.x\x00abc"), 256, syscall.ENOSYS},
		{"setxattr of 1 MiB", setxattr(1<<20, "user.x\x00"+strings.Repeat("x", 1<<20)), 256, syscall.EIO},
		{"ioctl of 4 GiB", patch(fuseRequest(opIoctl, 2, make([]byte, 32)), inHeaderSize+28, math.MaxUint32), 256, syscall.EIO},
		{"init of another protocol", patch(initRequest(), inHeaderSize, 8), 256, syscall.EIO},
		{"init of an old protocol", patch(initRequest(), inHeaderSize+4, 5), 256, syscall.EIO},
		{"forget that asks for an answer", fuseRequest(opForget, 2, u64(1)), 256, none},
		{"short forget", fuseRequest(opForget, 2), 256, none},
		{"forgets that are not there", patch(fuseRequest(opBatchForget, 2, u64(0)), inHeaderSize, math.MaxUint32), 256, none},
		{"interrupt of nothing", fuseRequest(opInterrupt, 0, u64(12345)), 256, syscall.EAGAIN},
		{"extension that is not there", patch(lookupRequest(1, "file"), 36, 100), 256, syscall.EIO},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := newTestFS()
			b, f := connect(t, fs, Options{})
			q := f.queues[1]
			q.put(0, [][]byte{c.in}, []int{c.room})
			q.offer(0)
			_, n, err := q.wait(20 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			reply := f.bytes(q.buffer(0, len(c.in)), n)
			switch {
			case c.want == none && n != 0:
				t.Errorf("an answer of %d bytes: %v", n, status(reply))
			case c.want != none && status(reply) != c.want:
				t.Errorf("answered %v (%d bytes), want %v", status(reply), n, c.want)
			case n > 0 && binary.LittleEndian.Uint64(reply[8:]) != binary.LittleEndian.Uint64(c.in[8:]):
				t.Errorf("answer to another request")
			}
			if reply, err := q.roundTrip(lookupRequest(1, "file"), 256); err != nil || status(reply) != 0 {
				t.Errorf("LOOKUP afterwards: %v, %x", err, reply)
			}
			finish(t, b, f)
		})
	}
}

// A ring that cannot be is reported and left alone; the other queues and the connection go on, and a reset mends it.
func TestBrokenRings(t *testing.T) {
	for _, c := range []struct {
		name      string
		breakRing func(q *driverQueue)
		fault     string
	}{
		{"too many requests", func(q *driverQueue) { store16(q.f.bytes(q.avail, 4), 2, q.availIndex+65) }, "65 requests in a queue of 64"},
		{"index goes back", func(q *driverQueue) { store16(q.f.bytes(q.avail, 4), 2, q.availIndex-1) }, "65535 requests in a queue of 64"},
		{"no such descriptor", func(q *driverQueue) {
			q.offer(64)
		}, "descriptor 64 in a queue of 64"},
		{"no such descriptor, giant", func(q *driverQueue) { q.offer(0xffff) }, "descriptor 65535 in a queue of 64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log faultLog
			b, f := connect(t, newTestFS(), Options{OnFault: log.add})
			q, other := f.queues[1], f.addQueue(2, 64, true)
			errfd := eventfd(t)
			defer unix.Close(errfd)
			f.send(msgSetVringErr, 0, u64(1), errfd)
			f.ask(msgGetFeatures) // the message has been read
			c.breakRing(q)
			q.doKick()
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(errfd), Events: unix.POLLIN}}, 20000); err != nil {
				t.Fatal(err)
			}
			var count [8]byte
			if _, err := unix.Read(errfd, count[:]); err != nil {
				t.Fatalf("the front end was not told: %v", err)
			}
			if reply, err := other.roundTrip(lookupRequest(1, "file"), 256); err != nil || status(reply) != 0 {
				t.Errorf("another queue: %v, %x", err, reply)
			}
			q.stop()
			if !log.has(c.fault) {
				t.Errorf("faults %q, want %q", log.faults, c.fault)
			}
			q.clear()
			q.start(0)
			if reply, err := q.roundTrip(lookupRequest(1, "file"), 256); err != nil || status(reply) != 0 {
				t.Errorf("after the reset: %v, %x", err, reply)
			}
			finish(t, b, f)
		})
	}
}

// Big reads into scattered memory are worked on a few at a time; the others, and everything else, wait for no longer
// than those take.
func TestBigReads(t *testing.T) {
	fs := newTestFS()
	b, f := connect(t, fs, Options{})
	q := f.queues[1]
	const n = 600 << 10
	a := q.buffer(0, 0)
	copy(f.bytes(a, 80), readRequest(3, 0, n-outHeaderSize))
	q.setDesc(0, a, 80, descNext, 1)
	q.setDesc(1, highGuest, n/2, descNext|descWrite, 2)
	q.setDesc(2, lowGuest+4<<20, n/2, descWrite, 0)
	for range bigBuffers + 5 {
		q.offer(0)
	}
	for range bigBuffers {
		<-fs.blocked
	}
	q.put(4, [][]byte{lookupRequest(1, "file")}, []int{256})
	q.offer(4)
	if head, _, err := q.wait(20 * time.Second); err != nil || head != 4 {
		t.Fatalf("LOOKUP beside big reads: %v, descriptor %d", err, head)
	}
	select {
	case <-fs.blocked:
		t.Errorf("more than %d big reads at a time", bigBuffers)
	default:
	}
	close(fs.release)
	for range bigBuffers + 5 {
		if head, got, err := q.wait(20 * time.Second); err != nil || head != 0 || got != n {
			t.Fatalf("big read: %v, descriptor %d, %d bytes", err, head, got)
		}
	}
	finish(t, b, f)
}

// Memory that the host cannot provide, here huge pages of which there are none, ends what touches it and nothing else.
func TestMissingPages(t *testing.T) {
	if b, err := os.ReadFile("/proc/meminfo"); err != nil || !bytes.Contains(b, []byte("HugePages_Free:        0")) {
		t.Skip("needs a host that knows of huge pages and has none free")
	}
	huge, err := unix.MemfdCreate("huge", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_HUGETLB)
	if err != nil {
		t.Skip("needs memfd_create with MFD_HUGETLB: ", err)
	}
	defer unix.Close(huge)
	if err := unix.Ftruncate(huge, regionSize); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(huge), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	const hugeGuest = 0x7f80_0000_0000 // above lowUser, because queues are laid out relative to that
	region := append(u64(0), regionBytes(hugeGuest, regionSize, hugeGuest, 0)...)

	t.Run("in a request", func(t *testing.T) {
		var faults faultLog
		b, f := connect(t, newTestFS(), Options{OnFault: faults.add})
		f.acked(msgAddMemReg, region, huge)
		q := f.queues[1]
		in := readRequest(2, 0, 4096)
		copy(f.bytes(q.buffer(0, 0), len(in)), in)
		q.setDesc(0, q.buffer(0, 0), len(in), descNext, 1)
		q.setDesc(1, hugeGuest, 4096+outHeaderSize, descWrite, 0)
		q.offer(0)
		other := f.addQueue(2, 64, true)
		if reply, err := other.roundTrip(lookupRequest(1, "file"), 256); err != nil || status(reply) != 0 {
			t.Errorf("another queue: %v, %x", err, reply)
		}
		q.stop()
		if !faults.has("dead") {
			t.Errorf("faults %q", faults.faults)
		}
		finish(t, b, f)
	})
	t.Run("in a ring", func(t *testing.T) {
		b, f := connect(t, newTestFS(), Options{})
		f.acked(msgAddMemReg, region, huge)
		q := f.addQueue(2, 64, true)
		q.stop()
		q.desc, q.avail, q.used = hugeGuest-lowUser, hugeGuest-lowUser+0x1000, hugeGuest-lowUser+0x2000
		if err := q.tryStart(0); err != nil {
			t.Fatal(err)
		}
		if err := b.wait(t); err == nil || !strings.Contains(err.Error(), "panic") {
			t.Errorf("Serve: %v", err)
		}
	})
}
