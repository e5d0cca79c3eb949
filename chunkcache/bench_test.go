package chunkcache

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkHit alternates reads through the cache with preads of a plain file that holds the same bytes, and reports the
// ratio of their times: what the cache costs over the file system.
func BenchmarkHit(b *testing.B) {
	for _, size := range []int{4 << 10, 128 << 10, 4 << 20} {
		for _, workers := range []int{1, runtime.GOMAXPROCS(0)} {
			b.Run(fmt.Sprintf("%dKiB/%d", size>>10, workers), func(b *testing.B) { benchmarkHit(b, size, workers) })
		}
	}
}

func benchmarkHit(b *testing.B, size, workers int) {
	h := open(b, b.TempDir(), Options{})
	chunks := max(4, (64<<20)/size)
	keys := make([]Key, chunks)
	plain, err := os.Create(filepath.Join(b.TempDir(), "plain"))
	if err != nil {
		b.Fatal(err)
	}
	defer plain.Close()
	for i := range keys {
		k, data := put(b, h.Cache, uint64(i), size)
		keys[i] = k
		if _, err := plain.WriteAt(data, int64(i*size)); err != nil {
			b.Fatal(err)
		}
	}
	ctx, fill := b.Context(), noFill
	run := func(read func(i int, p []byte) error) time.Duration {
		const round = 256
		n := max(1, min(round, (64<<20)/size))
		done := make(chan error, workers)
		start := time.Now()
		for w := range workers {
			go func() {
				p := make([]byte, size)
				for i := range n {
					if err := read((i*7+w*13)%chunks, p); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range workers {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(start) / time.Duration(n)
	}
	cached := func(i int, p []byte) error {
		_, err := h.ReadAt(ctx, keys[i], int64(size), p, 0, fill)
		return err
	}
	direct := func(i int, p []byte) error {
		_, err := plain.ReadAt(p, int64(i*size))
		return err
	}
	run(cached)
	run(direct)
	var a, p time.Duration
	for b.Loop() {
		a += run(cached)
		p += run(direct)
	}
	b.ReportMetric(float64(a)/float64(b.N), "cache-ns/read")
	b.ReportMetric(float64(p)/float64(b.N), "pread-ns/read")
	b.ReportMetric(float64(a)/float64(p), "ratio")
}

// BenchmarkReadAt is a hit alone, for its allocations.
func BenchmarkReadAt(b *testing.B) {
	h := open(b, b.TempDir(), Options{})
	k, data := put(b, h.Cache, 1, 1<<20)
	p, ctx, fill := make([]byte, 4096), b.Context(), noFill
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := h.ReadAt(ctx, k, int64(len(data)), p, int64(i%256)*4096, fill); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPut streams small chunks, as a layer full of small files does.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{512, 8 << 10, 4 << 20} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			h := open(b, b.TempDir(), Options{})
			data := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				binary.LittleEndian.PutUint64(data, i)
				if err := h.Put(b.Context(), sum256(data), data); err != nil {
					b.Fatal(err)
				}
			}
			if err := h.commits.flush(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkMillion stores a million chunks, opens the cache again, reads all of them, and reports the process's memory:
// its peak, and what is resident after each step. It runs with the soft memory limit that the daemon has, and fails when
// the peak is above 250 MB. Then it evicts half of them at once, which is more than a quota ever does, and reports the
// peak of that: badger's old tables and those that replace them are mapped at the same time.
func BenchmarkMillion(b *testing.B) {
	const chunks = 1_000_000
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(128 << 20))
	for b.Loop() {
		dir := b.TempDir()
		h := open(b, dir, Options{})
		data := make([]byte, 64)
		each := func(fn func(k Key, data []byte) error) {
			for i := range uint64(chunks) {
				binary.LittleEndian.PutUint64(data, i*0x9e3779b97f4a7c15)
				if err := fn(sum256(data), data); err != nil {
					b.Fatal(err)
				}
			}
		}
		resetPeak(b)
		start := time.Now()
		each(func(k Key, data []byte) error { return h.Put(b.Context(), k, data) })
		b.ReportMetric(float64(chunks)/time.Since(start).Seconds(), "puts/s")
		b.ReportMetric(memory(b, "VmRSS"), "MB-stored")
		start = time.Now()
		h = h.reopen(b, Options{})
		b.ReportMetric(time.Since(start).Seconds()*1000, "ms-reopen")
		b.ReportMetric(memory(b, "VmRSS"), "MB-reopened")
		p := make([]byte, 64)
		start = time.Now()
		each(func(k Key, data []byte) error {
			_, err := h.ReadAt(b.Context(), k, 64, p, 0, noFill)
			return err
		})
		b.ReportMetric(float64(chunks)/time.Since(start).Seconds(), "first-reads/s")
		b.ReportMetric(memory(b, "VmRSS"), "MB-read")
		peak := memory(b, "VmHWM")
		b.ReportMetric(peak, "MB-peak")
		if peak > 250 {
			b.Errorf("%.0f MB at the peak", peak)
		}
		start = time.Now()
		if u, err := h.Usage(b.Context()); err != nil || u.Chunks != chunks {
			b.Fatalf("%+v, %v", u, err)
		}
		b.ReportMetric(time.Since(start).Seconds()*1000, "ms-usage")
		start = time.Now()
		if _, err := h.Evict(b.Context(), h.Stats().DiskBytes/2); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s-evict-half")
		b.ReportMetric(memory(b, "VmHWM"), "MB-peak-evicting")
		h.close(b)
	}
}

// memory reads a line of /proc/self/status, in MB.
func memory(b *testing.B, name string) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), name+":")
	kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb / 1000
}

// resetPeak makes VmHWM begin anew (proc(5), clear_refs).
func resetPeak(b *testing.B) {
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o200); err != nil {
		b.Logf("the peak includes what was before: %v", err)
	}
}
