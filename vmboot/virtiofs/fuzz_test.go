package virtiofs

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A checkingFS is a testFS that expects of every request what the back end promises.
type checkingFS struct {
	*testFS
	tb testing.TB
}

func (c *checkingFS) name(names ...string) {
	for _, n := range names {
		if n == "" || n == "." || n == ".." || len(n) > 255 || strings.ContainsAny(n, "/\x00") {
			c.tb.Errorf("the name %q reached the file system", n)
		}
	}
}

func (c *checkingFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c.name(name)
	return c.testFS.Lookup(cancel, h, name, out)
}

func (c *checkingFS) Mkdir(_ <-chan struct{}, _ *fuse.MkdirIn, name string, _ *fuse.EntryOut) fuse.Status {
	c.name(name)
	return fuse.OK
}

func (c *checkingFS) Mknod(_ <-chan struct{}, _ *fuse.MknodIn, name string, _ *fuse.EntryOut) fuse.Status {
	c.name(name)
	return fuse.OK
}

func (c *checkingFS) Unlink(_ <-chan struct{}, _ *fuse.InHeader, name string) fuse.Status {
	c.name(name)
	return fuse.OK
}

func (c *checkingFS) Rename(_ <-chan struct{}, _ *fuse.RenameIn, from, to string) fuse.Status {
	c.name(from, to)
	return fuse.OK
}

func (c *checkingFS) Symlink(_ <-chan struct{}, _ *fuse.InHeader, target, name string, _ *fuse.EntryOut) fuse.Status {
	c.name(name)
	if target == "" {
		c.tb.Error("a symlink to nothing")
	}
	return fuse.OK
}

func (c *checkingFS) Create(_ <-chan struct{}, _ *fuse.CreateIn, name string, _ *fuse.CreateOut) fuse.Status {
	c.name(name)
	return fuse.OK
}

func (c *checkingFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if int(in.Size) != len(data) {
		c.tb.Errorf("WRITE of %d bytes with %d", in.Size, len(data))
	}
	return in.Size, fuse.OK
}

func (c *checkingFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, _ string, data []byte) fuse.Status {
	if int(in.Size) != len(data) {
		c.tb.Errorf("SETXATTR of %d bytes with %d", in.Size, len(data))
	}
	return fuse.OK
}

func (c *checkingFS) GetXAttr(_ <-chan struct{}, _ *fuse.InHeader, _ string, dest []byte) (uint32, fuse.Status) {
	if len(dest) > maxPrivate {
		c.tb.Errorf("GETXATTR of %d bytes", len(dest))
	}
	return uint32(copy(dest, "value")), fuse.OK
}

func (c *checkingFS) ReadDir(_ <-chan struct{}, _ *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	for out.AddDirEntry(fuse.DirEntry{Name: "file", Ino: 2}) {
	}
	return fuse.OK
}

// A script is fuzz input, read piece by piece; past its end there are zeros.
type script struct{ b []byte }

func (s *script) take(n int) []byte {
	p := make([]byte, n)
	k := copy(p, s.b)
	s.b = s.b[k:]
	return p
}

func (s *script) byte() int  { return int(s.take(1)[0]) }
func (s *script) short() int { return int(binary.LittleEndian.Uint16(s.take(2))) }

// FuzzBackend drives the whole back end with a front end and a guest that do as the input says: messages with any
// payload and descriptors, any bytes in the rings and buffers, requests that are nearly good.
func FuzzBackend(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x01\x00\x04file\x00"))
	for _, seed := range [][]byte{
		{0, 1, 1, 0, 0, 15, 1, 4, 1, 1, 5, 1, 0},
		{2, 12, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 11, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0, 0},
		{3, 0, 16, 32, 0x10, 0x20, 1, 1, 4, 1, 40, 6, 7, 1, 8},
		{0, 1, 3, 8, 1, 16, 80, 0, 0, 0, 7, 0, 1, 1, 5, 6, 8, 0, 1},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		files, maps := openFiles(t), guestMappings(t)
		b := startBackend(t, opened(&checkingFS{newTestFS(), t}), Options{Queues: 2, InFlight: 4})
		fe := dial(t, b.path)
		defer fe.close()
		fe.handshake(allFeatures)
		for i := range 3 {
			fe.addQueue(i, 16, i < 2)
		}
		fe.queues[1].put(0, [][]byte{initRequest()}, []int{256})
		fe.queues[1].offer(0)
		s := &script{input}
		for step := 0; step < 100 && len(s.b) > 0; step++ {
			if fe.fuzzStep(s) != nil {
				break // the back end has hung up
			}
		}
		fe.close()
		b.wait(t)
		if n := openFiles(t); n > files { // fewer: another test's have been collected meanwhile
			t.Errorf("%d descriptors, %d before", n, files)
		}
		if n := guestMappings(t); n > maps {
			t.Errorf("%d mappings of guest memory, %d before", n, maps)
		}
	})
}

// fuzzStep does the next thing of the script.
func (f *frontend) fuzzStep(s *script) error {
	op := s.byte() % 9
	q := f.queues[s.byte()%3]
	switch op {
	case 0: // a request with any opcode, payload and room
		body := s.take(s.byte())
		in := fuseRequest(uint32(s.byte()), uint64(s.byte()), body, s.take(s.byte()))
		if n := s.byte(); n > 0 {
			binary.LittleEndian.PutUint32(in, uint32(n))
		}
		head := 4 * (s.byte() % 4)
		q.put(head, [][]byte{in[:len(in)/2], in[len(in)/2:]}, []int{s.byte(), s.short() % 8192})
		q.offer(head)
	case 1: // a good request
		in := [][]byte{lookupRequest(1, "file"), readRequest(2, 5, 4096), readRequest(3, 0, 10), fuseRequest(opReaddir, 1, make([]byte, 16), u64(4096), make([]byte, 16))}[s.byte()%4]
		q.put(0, [][]byte{in}, []int{8192})
		q.offer(0)
	case 2: // a message
		kind, flags := s.byte(), s.byte()&flagNeedReply
		payload := s.take(s.byte())
		var files []int
		for range s.byte() % 10 {
			files = append(files, []int{f.memfd, q.kick, q.call}[s.byte()%3])
		}
		return f.trySend(uint32(kind), uint32(flags), payload, files...)
	case 3: // a descriptor
		q.setDesc(s.byte()%16, uint64(s.short())<<(s.byte()%48), s.short(), s.byte(), s.byte())
	case 4: // any bytes somewhere near the rings or buffers
		at := []uint64{q.desc, q.avail, q.used, q.buffer(0, 0)}[s.byte()%4] + uint64(s.short()%1024)
		n := s.byte()
		copy(f.bytes(at, n), s.take(n))
	case 5: // a head
		q.offer(s.byte())
		q.doKick()
	case 6: // an index
		store16(f.bytes(q.avail, 4), 2, uint16(s.short()))
		q.doKick()
	case 7: // a stop and a start, as a reboot does
		if err := f.trySend(msgResetDevice, 0, nil); err != nil {
			return err
		}
		q.clear()
		return q.tryStart(0)
	case 8: // a message with a ring's addresses nearly right
		a := state(q.index, 0)
		for _, x := range []uint64{q.desc, q.used, q.avail, 0} {
			a = binary.LittleEndian.AppendUint64(a, x+lowUser+uint64(s.byte())<<(s.byte()%64))
		}
		return f.trySend(msgSetVringAddr, 0, a)
	}
	return nil
}

// tryStart is start without waiting for answers.
func (q *driverQueue) tryStart(base int) error {
	f := q.f
	addr := state(q.index, 0)
	for _, a := range []uint64{q.desc, q.used, q.avail, 0} {
		addr = binary.LittleEndian.AppendUint64(addr, a+lowUser)
	}
	for _, m := range []struct {
		kind    uint32
		payload []byte
		files   []int
	}{
		{msgSetVringNum, state(q.index, q.size), nil},
		{msgSetVringBase, state(q.index, base), nil},
		{msgSetVringAddr, addr, nil},
		{msgSetVringKick, u64(uint64(q.index)), []int{q.kick}},
		{msgSetVringCall, u64(uint64(q.index)), []int{q.call}},
		{msgSetVringEnable, state(q.index, 1), nil},
	} {
		if err := f.trySend(m.kind, 0, m.payload, m.files...); err != nil {
			return err
		}
	}
	return nil
}
