package chunkcache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/microsandbox/msb-fs/internal/db"
	"github.com/microsandbox/msb-fs/internal/priority"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashChild) != "" {
		os.Exit(crashWriter())
	}
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreAnyFunction("github.com/dgraph-io/badger/v4/y.init"))
}

// chunk makes a chunk of n bytes that differs by seed.
func chunk(seed uint64, n int) (Key, []byte) {
	b := make([]byte, n)
	var s [32]byte
	s[0], s[1], s[2], s[3] = byte(seed), byte(seed>>8), byte(seed>>16), byte(seed>>24)
	_, _ = rand.NewChaCha8(s).Read(b)
	return sha256.Sum256(b), b
}

// home is a cache and its database in one directory, as the daemon has them.
type home struct {
	*Cache
	db  *badger.DB
	dir string
}

func open(t testing.TB, dir string, o Options) *home {
	t.Helper()
	d, err := db.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(d, filepath.Join(dir, "chunks"), o)
	if err != nil {
		d.Close()
		t.Fatal(err)
	}
	h := &home{c, d, dir}
	t.Cleanup(func() { h.close(t) })
	return h
}

func (h *home) close(t testing.TB) {
	t.Helper()
	if h.closed.Load() {
		return
	}
	if err := h.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := h.db.Close(); err != nil {
		t.Errorf("close database: %v", err)
	}
}

// reopen closes the cache in good order and opens it again.
func (h *home) reopen(t testing.TB, o Options) *home {
	t.Helper()
	h.close(t)
	return open(t, h.dir, o)
}

// killed copies what is on disk at this moment, as kill -9 would leave it, and opens the copy.
func (h *home) killed(t testing.TB, o Options) *home {
	t.Helper()
	// Badger may remove a file while it is being copied, which a killed process's directory never does: once more then.
	for try := 0; ; try++ {
		dir := t.TempDir()
		err := os.CopyFS(dir, os.DirFS(h.dir))
		if err == nil {
			return open(t, dir, o)
		}
		if !errors.Is(err, fs.ErrNotExist) || try == 10 {
			t.Fatal(err)
		}
	}
}

func put(t testing.TB, c *Cache, seed uint64, n int) (Key, []byte) {
	t.Helper()
	k, data := chunk(seed, n)
	if err := c.Put(t.Context(), k, data); err != nil {
		t.Fatal(err)
	}
	return k, data
}

// want reads the whole chunk and says whether it had to be filled.
func want(t testing.TB, c *Cache, k Key, data []byte) (filled bool) {
	t.Helper()
	p := make([]byte, len(data))
	_, err := c.ReadAt(t.Context(), k, int64(len(data)), p, 0, func(context.Context) ([]byte, error) {
		filled = true
		return data, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, data) {
		t.Fatalf("chunk %s: wrong bytes", short(k))
	}
	return filled
}

func noFill(context.Context) ([]byte, error) { return nil, errors.New("no fill expected") }

// damage flips a bit of chunk k on disk.
func (h *home) damage(t testing.TB, k Key, off int64) {
	t.Helper()
	e, err := h.find(&k)
	if err != nil || e == nil {
		t.Fatalf("chunk %s is not there: %v", short(k), err)
	}
	var b [1]byte
	if _, err := e.seg.f.ReadAt(b[:], e.off+off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := e.seg.f.WriteAt(b[:], e.off+off); err != nil {
		t.Fatal(err)
	}
}

var sizes = []int{1, 7, 4096, 65535, 65536, 65537, 1 << 20, 4 << 20, 4<<20 + 1, 5<<20 + 13}

func TestEveryRangeOfEverySize(t *testing.T) {
	h := open(t, t.TempDir(), Options{segmentBytes: 8 << 20})
	for pass := range 3 {
		for i, n := range sizes {
			k, data := chunk(uint64(i), n)
			if filled := want(t, h.Cache, k, data); filled != (pass == 0) {
				t.Fatalf("pass %d, %d bytes: filled = %v", pass, n, filled)
			}
			r := rand.New(rand.NewPCG(uint64(n), 1))
			for range 20 {
				off := r.IntN(n)
				p := make([]byte, 1+r.IntN(n-off))
				if _, err := h.ReadAt(t.Context(), k, int64(n), p, int64(off), noFill); err != nil || !bytes.Equal(p, data[off:off+len(p)]) {
					t.Fatalf("%d bytes [%d,+%d): %v", n, off, len(p), err)
				}
			}
		}
		h = h.reopen(t, Options{segmentBytes: 8 << 20})
	}
	if s := h.Stats(); s.Chunks != int64(len(sizes)) || s.Refetched != 0 {
		t.Fatalf("stats %+v", s)
	}
}

func TestReadOutOfRange(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	k, data := put(t, h.Cache, 1, 100)
	for _, r := range []struct{ size, off, n int64 }{{100, -1, 5}, {100, 96, 5}, {100, 101, 0}, {0, 0, 0}, {MaxSize + 1, 0, 1}, {-5, 0, 1}} {
		if _, err := h.ReadAt(t.Context(), k, r.size, make([]byte, r.n), r.off, noFill); err == nil {
			t.Errorf("size %d [%d,+%d) was answered", r.size, r.off, r.n)
		}
	}
	if _, err := h.ReadAt(t.Context(), k, 99, make([]byte, 9), 0, noFill); !errors.Is(err, ErrDigest) {
		t.Errorf("a layer that says the wrong size: %v", err)
	}
	want(t, h.Cache, k, data)
}

func TestOneFillHoweverMany(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	k, data := chunk(1, 100_000)
	var fills atomic.Int32
	var wg sync.WaitGroup
	const readers = 50
	for i := range readers {
		wg.Go(func() {
			p := make([]byte, 1000)
			_, err := h.ReadAt(t.Context(), k, int64(len(data)), p, int64(i*1000), func(context.Context) ([]byte, error) {
				fills.Add(1)
				s := h.shard(&k)
				for { // until all others wait for this fill
					s.mu.RLock()
					refs := s.flights[k].readers
					s.mu.RUnlock()
					if refs == readers-1 {
						return data, nil
					}
				}
			})
			if err != nil || !bytes.Equal(p, data[i*1000:][:1000]) {
				t.Errorf("reader %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if s := h.Stats(); fills.Load() != 1 || s.Shared != readers-1 || s.Misses != 1 {
		t.Fatalf("%d fills, %+v", fills.Load(), s)
	}
}

func TestCancelledFillerHandsOver(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	k, data := chunk(1, 5000)
	ctx, cancel := context.WithCancel(t.Context())
	filling := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := h.ReadAt(ctx, k, 5000, make([]byte, 10), 0, func(ctx context.Context) ([]byte, error) {
			close(filling)
			<-ctx.Done()
			return nil, errors.New("connection reset") // what a transport may say of a cancelled request
		})
		if err == nil {
			t.Error("the cancelled filler got an answer")
		}
	})
	<-filling
	wg.Go(func() {
		p := make([]byte, 10)
		_, err := h.ReadAt(t.Context(), k, 5000, p, 0, func(context.Context) ([]byte, error) { return data, nil })
		if err != nil || !bytes.Equal(p, data[:10]) {
			t.Errorf("the waiter: %v", err)
		}
	})
	impatient, stop := context.WithCancel(t.Context())
	stop()
	if _, err := h.ReadAt(impatient, k, 5000, make([]byte, 1), 0, noFill); !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter that was cancelled: %v", err)
	}
	for s := h.shard(&k); ; time.Sleep(time.Millisecond) { // until the waiter waits
		s.mu.RLock()
		n := s.flights[k].readers
		s.mu.RUnlock()
		if n == 1 {
			break
		}
	}
	cancel()
	wg.Wait()
	if !h.Has(k) {
		t.Error("the chunk was not kept")
	}
}

func TestFillErrors(t *testing.T) {
	h := open(t, t.TempDir(), Options{Buffers: 10_000})
	k, data := chunk(1, 5000)
	boom := errors.New("registry is down")
	if _, err := h.ReadAt(t.Context(), k, 5000, make([]byte, 1), 0, func(context.Context) ([]byte, error) { return nil, boom }); !errors.Is(err, boom) {
		t.Errorf("the fill's error is lost: %v", err)
	}
	for range 5 { // more often than the budget would allow were it not given back
		func() {
			defer func() { _ = recover() }()
			_, _ = h.ReadAt(t.Context(), k, 5000, make([]byte, 1), 0, func(context.Context) ([]byte, error) { panic("bug") })
			t.Error("the panic was swallowed")
		}()
	}
	if want(t, h.Cache, k, data); h.Stats().Chunks != 1 {
		t.Errorf("%+v", h.Stats())
	}
}

func TestWrongBytesAreNeverSeen(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	k, data := chunk(1, 5000)
	_, other := chunk(2, 5000)
	for name, bad := range map[string][]byte{"other bytes": other, "short": data[:4999], "long": append(bytes.Clone(data), 0), "nothing": nil} {
		p := make([]byte, 10)
		_, err := h.ReadAt(t.Context(), k, 5000, p, 0, func(context.Context) ([]byte, error) { return bad, nil })
		if !errors.Is(err, ErrDigest) || !bytes.Equal(p, make([]byte, 10)) {
			t.Errorf("%s: read answered %v", name, err)
		}
		if err := h.Put(t.Context(), k, bad); err == nil {
			t.Errorf("%s: put answered %v", name, err)
		}
	}
	if h.Has(k) || h.Stats().Rejected != 4 {
		t.Errorf("has %v, %+v", h.Has(k), h.Stats())
	}
	tries := 0
	_, err := h.ReadAt(t.Context(), k, 5000, make([]byte, 10), 0, func(context.Context) ([]byte, error) {
		if tries++; tries == 1 {
			return other, nil
		}
		return data, nil
	})
	if err != nil || tries != 2 {
		t.Errorf("a second try did not help: %v after %d", err, tries)
	}
}

func TestBuffersAreBounded(t *testing.T) {
	const size = 100_000
	h := open(t, t.TempDir(), Options{Buffers: 4 * size})
	var now, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			k, data := chunk(uint64(i), size)
			_, err := h.ReadAt(t.Context(), k, size, make([]byte, 1), 0, func(context.Context) ([]byte, error) {
				n := now.Add(1)
				defer now.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(time.Millisecond) // so that the others could come
				return data, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 { // the rest is for what is fetched ahead
		t.Errorf("%d fills at a time in a budget of 3", most.Load())
	}
	big, data := chunk(99, 5*size) // larger than the whole budget
	want(t, h.Cache, big, data)
}

// A read that somebody waits for waits neither for a prefetch of the same chunk, nor for the buffers of others.
func TestAnUrgentReadOvertakes(t *testing.T) {
	h := open(t, t.TempDir(), Options{Buffers: 40_000})
	k, data := chunk(1, 5000)
	ahead := priority.With(t.Context(), priority.Predicted)
	release, started := make(chan struct{}), make(chan struct{}, 10)
	var wg sync.WaitGroup
	for i := range 10 { // more than the patient part of the budget holds
		wg.Go(func() {
			k, data := chunk(uint64(1+i), 5000)
			p := make([]byte, 5000)
			_, err := h.ReadAt(ahead, k, 5000, p, 0, func(context.Context) ([]byte, error) {
				started <- struct{}{}
				<-release
				return data, nil
			})
			if err != nil || !bytes.Equal(p, data) {
				t.Errorf("prefetch %d: %v", i, err)
			}
		})
	}
	<-started
	<-started
	for i := range 10 {
		k, data := chunk(uint64(1+i), 5000)
		want(t, h.Cache, k, data)
	}
	close(release)
	wg.Wait()
	if want(t, h.Cache, k, data) || h.Stats().Chunks != 10 {
		t.Errorf("%+v", h.Stats())
	}
}

func TestAHitAllocatesNothing(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	k, data := put(t, h.Cache, 1, 1<<20)
	p, ctx := make([]byte, 4096), t.Context()
	fill := noFill
	n := testing.AllocsPerRun(1000, func() {
		if _, err := h.ReadAt(ctx, k, int64(len(data)), p, 8192, fill); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAddSaysWhatWasNew(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	k, data := chunk(1, 5000)
	for i, wanted := range []bool{true, false} {
		if added, err := h.Add(t.Context(), k, data); err != nil || added != wanted {
			t.Errorf("call %d: %v, %v", i, added, err)
		}
	}
	if s := h.Stats(); s.Chunks != 1 || s.Bytes != 5000 || s.Offered != 10_000 {
		t.Errorf("%+v", s)
	}
}
