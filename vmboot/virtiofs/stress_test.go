package virtiofs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Every request is answered once, and every wait for an answer is ended by an interrupt, with as well as without the
// event index: the driver sleeps on the call descriptor alone, and kicks only when it is asked to.
func TestNoLostWakeups(t *testing.T) {
	for _, c := range []struct {
		name     string
		features uint64
		depth    int // requests in flight
	}{
		{"event index, one at a time", allFeatures, 1},
		{"event index, many", allFeatures, 15},
		{"flags, one at a time", allFeatures &^ featEventIndex, 1},
		{"flags, many", allFeatures &^ featEventIndex, 15},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := startBackend(t, opened(newTestFS()), Options{})
			f := dial(t, b.path)
			defer f.close()
			f.handshake(c.features)
			events := c.features&featEventIndex != 0
			const queues = 2
			for i := 1; i <= queues; i++ {
				q := f.addQueue(i, 64, events)
				if reply, err := q.roundTrip(initRequest(), 256); err != nil || status(reply) != 0 {
					t.Fatalf("INIT: %v, %x", err, reply)
				}
			}
			var wg sync.WaitGroup
			for _, q := range f.queues {
				wg.Go(func() {
					if err := stress(q, 70000, c.depth); err != nil { // more than the indices can count
						t.Errorf("queue %d: %v", q.index, err)
					}
				})
			}
			wg.Wait()
			finish(t, b, f)
		})
	}
}

// stress makes n requests with depth of them in flight.
func stress(q *driverQueue, n, depth int) error {
	random := rand.New(rand.NewPCG(1, uint64(q.index)))
	var free []int
	for i := range depth {
		free = append(free, 4*i)
	}
	want := map[int]syscall.Errno{}
	for done := 0; done < n; {
		for len(free) > 0 && done+len(want) < n {
			head := free[len(free)-1]
			free = free[:len(free)-1]
			name, errno := "file", syscall.Errno(0)
			if random.IntN(2) == 0 {
				name, errno = "none", syscall.ENOENT
			}
			want[head] = errno
			q.put(head, [][]byte{lookupRequest(1, name)}, []int{256})
			q.offer(head)
		}
		head, length, err := q.wait(20 * time.Second)
		if err != nil {
			return fmt.Errorf("%w after %d of %d, %d in flight", err, done, n, len(want))
		}
		errno, asked := want[head]
		if !asked {
			return fmt.Errorf("an answer to descriptor %d, which was not asked", head)
		}
		reply := q.f.bytes(q.buffer(head, len(lookupRequest(1, "file"))), length)
		if status(reply) != errno {
			return fmt.Errorf("answer %v instead of %v", status(reply), errno)
		}
		delete(want, head)
		free = append(free, head)
		done++
	}
	return nil
}

// Data comes back byte-exact through any cutting into buffers.
func TestScatteredReads(t *testing.T) {
	b, f := connect(t, newTestFS(), Options{})
	q := f.queues[1]
	random := rand.New(rand.NewPCG(2, 3))
	for range 300 {
		var rooms []int
		total := 0
		for range 1 + random.IntN(8) {
			n := 1 + random.IntN(20000)
			rooms = append(rooms, n)
			total += n
		}
		if total <= outHeaderSize {
			continue
		}
		size := total - outHeaderSize
		off := random.Int64N(fileSize - int64(size))
		in := readRequest(2, off, size)
		cut := 1 + random.IntN(len(in)-1)
		out := q.put(0, [][]byte{in[:cut], in[cut:]}, rooms)
		q.offer(0)
		_, n, err := q.wait(20 * time.Second)
		if err != nil || n != total {
			t.Fatalf("READ of %d bytes into %v: %v, %d bytes", size, rooms, err, n)
		}
		var got []byte
		for i, a := range out {
			got = append(got, f.bytes(a, rooms[i])...)
		}
		if !bytes.Equal(got[outHeaderSize:], content(off, size)) {
			t.Fatalf("READ of %d bytes at %d into %v gave other bytes", size, off, rooms)
		}
	}
	finish(t, b, f)
}

// A guest that does its worst does not keep another from being served.
func TestHostileNeighbour(t *testing.T) {
	victimB, victim := connect(t, newTestFS(), Options{})
	badFS := newTestFS()
	badB, bad := connect(t, badFS, Options{})
	defer close(badFS.release)

	lookups := func() (p50, p99 time.Duration) {
		took := make([]time.Duration, 5000)
		for i := range took {
			begun := time.Now()
			if reply, err := victim.queues[1].roundTrip(lookupRequest(1, "file"), 256); err != nil || status(reply) != 0 {
				t.Fatalf("LOOKUP %d: %v, %x", i, err, reply)
			}
			took[i] = time.Since(begun)
		}
		slices.Sort(took)
		return took[len(took)/2], took[len(took)*99/100]
	}
	p50, p99 := lookups()
	t.Logf("alone: a LOOKUP takes %v, at the 99th percentile %v", p50, p99)
	stop := attack(bad.queues[1])
	p50, p99 = lookups()
	t.Logf("beside a hostile guest: %v, %v; %d attacks", p50, p99, stop())
	finish(t, badB, bad)
	finish(t, victimB, victim)
}

// attack has a guest do its worst on q until stop is called, which returns how often it did something.
func attack(q *driverQueue) (stop func() int64) {
	bad := q.f
	quit := make(chan struct{})
	var wg sync.WaitGroup
	var attacks atomic.Int64
	wg.Go(func() {
		random := rand.New(rand.NewPCG(4, 5))
		for {
			select {
			case <-quit:
				return
			default:
			}
			if attacks.Add(1)%100 == 0 { // by now the ring is broken
				bad.acked(msgResetDevice, nil)
				q.clear()
				q.start(0)
			}
			switch random.IntN(6) {
			case 0: // requests that never end
				head := 4 * random.IntN(16)
				q.put(head, [][]byte{readRequest(3, 0, 4096)}, []int{4096 + outHeaderSize})
				q.offer(head)
			case 1: // panics
				q.put(60, [][]byte{lookupRequest(1, "panic")}, []int{256})
				q.offer(60)
			case 2: // loops
				q.setDesc(59, highGuest, 1, descNext, 59)
				q.offer(59)
			case 3: // kicks for nothing
				for range 100 {
					q.doKick()
				}
			case 4: // the same request many times, changed while it is read
				in := lookupRequest(1, "file")
				q.put(0, [][]byte{in}, []int{256})
				for range 10 {
					q.offer(0)
					v := random.Uint32()
					copy(bad.bytes(q.buffer(0, 0)+uint64(v%64), 4), u64(uint64(v))[:4])
				}
			case 5: // big reads into the rings themselves
				q.setDesc(4, q.buffer(4, 0), len(readRequest(2, 0, 1)), descNext, 5)
				copy(bad.bytes(q.buffer(4, 0), 80), readRequest(2, 0, 8192))
				q.setDesc(5, q.used&^0xfff, 8192+outHeaderSize, descWrite, 0)
				q.offer(4)
			}
		}
	})
	return func() int64 {
		close(quit)
		wg.Wait()
		return attacks.Load()
	}
}

func benchmarkBackend(b *testing.B, fs fuse.RawFileSystem) *frontend {
	back := startBackend(b, opened(fs), Options{})
	f := dial(b, back.path)
	b.Cleanup(func() {
		f.close()
		back.wait(b)
	})
	f.handshake(allFeatures)
	q := f.addQueue(1, 64, true)
	if reply, err := q.roundTrip(initRequest(), 256); err != nil || status(reply) != 0 {
		b.Fatalf("INIT: %v, %x", err, reply)
	}
	return f
}

// BenchmarkLookup is the round trip of the smallest request: a driver that sleeps until the answer has come.
func BenchmarkLookup(b *testing.B) {
	q := benchmarkBackend(b, newTestFS()).queues[0]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := q.roundTrip(lookupRequest(1, "file"), 256); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNeighbours is BenchmarkLookup beside other guests: quiet ones, one that reads as fast as it can, and one that
// does its worst. It reports the latency that half and 99 of 100 requests had.
func BenchmarkNeighbours(b *testing.B) {
	for _, c := range []struct {
		name string
		loud func(b *testing.B, f *frontend) (stop func() int64)
	}{
		{"quiet", func(*testing.B, *frontend) func() int64 { return func() int64 { return 0 } }},
		{"reading", func(b *testing.B, f *frontend) func() int64 {
			quit := make(chan struct{})
			done := make(chan int64)
			go func() {
				n := int64(0)
				q := f.queues[0]
				for {
					select {
					case <-quit:
						done <- n
						return
					default:
					}
					for i := range 15 {
						q.put(4*i, [][]byte{readRequest(2, 0, 24<<10)}, []int{24<<10 + outHeaderSize})
						q.offer(4 * i)
					}
					for range 15 {
						if _, _, err := q.wait(20 * time.Second); err != nil {
							b.Error(err)
						}
						n++
					}
				}
			}()
			return func() int64 { close(quit); return <-done }
		}},
		{"hostile", func(b *testing.B, f *frontend) func() int64 {
			return attack(f.queues[0])
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			q := benchmarkBackend(b, newTestFS()).queues[0]
			stop := c.loud(b, benchmarkBackend(b, &memoryFS{newTestFS(), content(0, fileSize)}))
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				if _, err := q.roundTrip(lookupRequest(1, "file"), 256); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			b.ReportMetric(float64(stop())/b.Elapsed().Seconds(), "acts/s")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
		})
	}
}

// BenchmarkLookups has 15 of them in flight.
func BenchmarkLookups(b *testing.B) {
	q := benchmarkBackend(b, newTestFS()).queues[0]
	b.ReportAllocs()
	b.ResetTimer()
	if err := stress(q, b.N, 15); err != nil {
		b.Fatal(err)
	}
}

// memoryFS reads from memory, without making the bytes up.
type memoryFS struct {
	*testFS
	data []byte
}

func (m *memoryFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	return fuse.ReadResultVector([][]byte{m.data[in.Offset : in.Offset+uint64(in.Size)]}), fuse.OK
}

// BenchmarkRead is the round trip of READs of 128 KiB.
func BenchmarkRead(b *testing.B) {
	q := benchmarkBackend(b, &memoryFS{newTestFS(), content(0, fileSize)}).queues[0]
	b.ReportAllocs()
	b.SetBytes(128 << 10)
	for b.Loop() {
		if _, err := q.roundTrip(readRequest(2, 0, 128<<10), 128<<10+outHeaderSize); err != nil {
			b.Fatal(err)
		}
	}
}
