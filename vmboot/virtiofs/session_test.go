package virtiofs

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// Requests before INIT and after DESTROY do not reach the file system.
func TestSession(t *testing.T) {
	b := startBackend(t, opened(newTestFS()), Options{})
	f := dial(t, b.path)
	defer f.close()
	f.handshake(allFeatures)
	q := f.addQueue(1, 64, true)
	for _, c := range []struct {
		what string
		in   []byte
		want syscall.Errno
	}{
		{"LOOKUP before INIT", lookupRequest(1, "file"), syscall.EIO},
		{"INIT", initRequest(), 0},
		{"LOOKUP", lookupRequest(1, "file"), 0},
		{"second INIT", initRequest(), 0},
		{"DESTROY", fuseRequest(opDestroy, 0), 0},
		{"LOOKUP after DESTROY", lookupRequest(1, "file"), syscall.EIO},
		{"INIT after DESTROY", initRequest(), 0},
		{"LOOKUP after INIT", lookupRequest(1, "file"), 0},
	} {
		if reply, err := q.roundTrip(c.in, 256); err != nil || status(reply) != c.want {
			t.Fatalf("%s: %v, %v, want %v", c.what, err, status(reply), c.want)
		}
	}
	finish(t, b, f)
}

// The memory table may change while requests are in progress; those are answered when the ring is there again.
func TestMemoryChanges(t *testing.T) {
	before := guestMappings(t)
	fs := newTestFS()
	b, f := connect(t, fs, Options{})
	q := f.queues[1]
	q.put(4, [][]byte{readRequest(3, 0, 4096)}, []int{4096 + outHeaderSize})
	q.offer(4)
	<-fs.blocked
	low := append(u64(0), regionBytes(lowGuest, regionSize, lowUser, 0)...)
	high := append(u64(0), regionBytes(highGuest, regionSize, highUser, regionSize)...)
	f.acked(msgRemMemReg, low)
	f.acked(msgRemMemReg, high)
	close(fs.release) // the request ends while the ring is nowhere
	q.put(8, [][]byte{lookupRequest(1, "file")}, []int{256})
	q.offer(8)
	if _, _, err := q.wait(50 * time.Millisecond); !errors.Is(err, errNoAnswer) {
		t.Fatalf("an answer in a ring that is nowhere: %v", err)
	}
	f.acked(msgSetMemTable, memTable(), f.memfd, f.memfd)
	heads := map[int]int{}
	for range 2 {
		head, n, err := q.wait(20 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		heads[head] = n
	}
	if heads[4] != 4096+outHeaderSize || heads[8] != outHeaderSize+128 {
		t.Errorf("answers %v", heads)
	}
	f.acked(msgRemMemReg, high)
	f.acked(msgAddMemReg, high, f.memfd)
	for range 10 {
		f.acked(msgSetMemTable, memTable(), f.memfd, f.memfd)
	}
	if reply, err := q.roundTrip(lookupRequest(1, "file"), 256); err != nil || status(reply) != 0 {
		t.Errorf("with another table: %v, %x", err, reply)
	}
	if n := guestMappings(t) - before; n != 1+2 {
		t.Errorf("%d mappings of guest memory instead of the front end's one and our two", n)
	}
	finish(t, b, f)
	if n := guestMappings(t) - before; n != 0 {
		t.Errorf("%d mappings of guest memory left", n)
	}
}

// RESET_DEVICE gives up what is in progress, and the device can be set up again on the same connection.
func TestReset(t *testing.T) {
	fs := newTestFS()
	b, f := connect(t, fs, Options{})
	q := f.queues[1]
	q.put(4, [][]byte{readRequest(3, 0, 4096)}, []int{4096 + outHeaderSize})
	q.offer(4)
	<-fs.blocked
	f.acked(msgResetDevice, nil)
	if _, _, ok := q.poll(); ok {
		t.Error("an answer after the reset")
	}
	q.clear()
	q.start(0)
	if reply, err := q.roundTrip(lookupRequest(1, "file"), 256); err != nil || status(reply) != 0 {
		t.Errorf("after the reset: %v, %x", err, reply)
	}
	finish(t, b, f)
}

// Connecting and being killed leaves nothing behind, however often.
func TestManyFrontends(t *testing.T) {
	files, maps := openFiles(t), guestMappings(t)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	fs := newTestFS()
	var slowest time.Duration
	for i := range 500 {
		done := make(chan error, 1)
		go func() { done <- Serve(t.Context(), ln, opened(fs), Options{}) }()
		f := dial(t, ln.Addr().String())
		f.handshake(allFeatures)
		q := f.addQueue(1, 64, i%2 == 0)
		if reply, err := q.roundTrip(initRequest(), 256); err != nil || status(reply) != 0 {
			t.Fatalf("INIT %d: %v, %x", i, err, reply)
		}
		switch i % 4 {
		case 0: // killed while requests are in progress
			for j := 1; j < 8; j++ {
				q.put(4*j, [][]byte{readRequest(3, 0, 4096)}, []int{4096 + outHeaderSize})
				q.offer(4 * j)
			}
		case 1: // killed with a request about to be taken
			q.put(4, [][]byte{lookupRequest(1, "file")}, []int{256})
			q.offer(4)
		case 2: // powered off
			q.stop()
		}
		f.close()
		closed := time.Now()
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("Serve %d: %v", i, err)
			}
			slowest = max(slowest, time.Since(closed))
		case <-time.After(20 * time.Second):
			panic("Serve does not return")
		}
	}
	t.Logf("Serve returned within %v of the front end's going", slowest)
	if n := openFiles(t) - files; n != 1 { // ln
		t.Errorf("%d descriptors more than before", n)
	}
	if n := guestMappings(t) - maps; n != 0 {
		t.Errorf("%d mappings of guest memory left", n)
	}
}
