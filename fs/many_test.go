package fs

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A hundred mounts of ten images, with readers on all of them.
func TestManyMounts(t *testing.T) {
	needMount(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root: fusermount3 allows fewer mounts")
	}
	const images, mounts = 10, 100
	dirs := make([]string, mounts)
	var trees []*Tree
	for i := range images {
		var items []item
		for k := range 40 {
			items = append(items, file(fmt.Sprintf("d%d/f%d", k%4, k), strings.Repeat(fmt.Sprint(i, k), 3000)), symlink(fmt.Sprintf("d%d/s%d", k%4, k), fmt.Sprintf("f%d", k)))
		}
		trees = append(trees, sealedTree(t, Options{}, newLayer(items...)))
	}
	for i := range dirs {
		dirs[i] = mountTree(t, trees[i%images])
	}
	var wg sync.WaitGroup
	work := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range work {
				n := 0
				err := filepath.WalkDir(dirs[i], func(p string, d fs.DirEntry, err error) error {
					if err != nil || d.IsDir() {
						return err
					}
					n++
					b, err := os.ReadFile(p)
					if base := strings.TrimLeft(filepath.Base(p), "fs"); err == nil && !bytes.HasPrefix(b, []byte(fmt.Sprint(i%images, " ", base))) && !bytes.HasPrefix(b, []byte(fmt.Sprint(i%images)+base)) {
						err = fmt.Errorf("%s has %.10q", p, b)
					}
					return err
				})
				if err != nil || n != 80 {
					t.Errorf("mount %d: %d files, %v", i, n, err)
				}
			}
		})
	}
	for i := range 2 * mounts {
		work <- i % mounts
	}
	close(work)
	wg.Wait()
}

// Readers that go by other ways than read(2).
func TestMountReaders(t *testing.T) {
	needMount(t)
	body := strings.Repeat("0123456789abcde\n", 20_000)
	dir := mountTree(t, sealedTree(t, Options{}, newLayer(file("f", body), file("empty", ""))))
	fd, err := unix.Open(dir+"/f", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, len(body), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil || string(m) != body {
		t.Errorf("mmap: %v, or it is wrong", err)
	}
	if err == nil {
		if err := unix.Munmap(m); err != nil {
			t.Error(err)
		}
	}
	if off, err := unix.Seek(fd, 10, unix.SEEK_DATA); off != 10 || err != nil {
		t.Errorf("SEEK_DATA: %d, %v", off, err)
	}
	if off, err := unix.Seek(fd, 10, unix.SEEK_HOLE); off != int64(len(body)) || err != nil {
		t.Errorf("SEEK_HOLE: %d, %v", off, err)
	}
	direct, err := unix.Open(dir+"/f", unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(direct)
	page, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	if n, err := unix.Pread(direct, page, 4096); err != nil || string(page[:n]) != body[4096:] {
		t.Errorf("O_DIRECT: %d bytes, %v", n, err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	off := int64(5)
	if n, err := unix.Sendfile(int(out.Fd()), fd, &off, len(body)); err != nil || n != len(body)-5 {
		t.Errorf("sendfile: %d, %v", n, err)
	}
	if b, err := os.ReadFile(dir + "/empty"); err != nil || len(b) != 0 {
		t.Errorf("empty: %q, %v", b, err)
	}
	if n, err := unix.Pread(fd, page, int64(len(body))); n != 0 || err != nil {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

// BenchmarkMount opens and mounts a sealed tree of 100,000 files, and reports what each further one takes of time and of
// memory that is not shared.
func BenchmarkMount(b *testing.B) {
	needMount(b)
	var items []item
	for i := range 100_000 {
		items = append(items, file(fmt.Sprintf("usr/lib/d%d/some-file-name-%d", i%1000, i), ""))
	}
	l := newLayer(items...)
	clear(items)
	tree := filepath.Join(b.TempDir(), "tree")
	sealedTree(b, Options{File: tree}, l)
	l.entries = nil
	debug.FreeOSMemory()
	before, count := resident(b), 0
	var took time.Duration
	for b.Loop() {
		count++
		start := time.Now()
		t := newTree(b, Options{File: tree}, l)
		dir := b.TempDir()
		m, err := Mount(context.Background(), Raw(t), dir, MountOptions{ReadOnly: true})
		if err != nil {
			b.Fatal(err)
		}
		took += time.Since(start)
		b.Cleanup(func() { m.Unmount() })
		if _, err := os.Stat(dir + "/usr/lib/d7/some-file-name-99007"); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	b.ReportMetric(float64(resident(b)-before)/float64(count)/1024, "KiB/mount")
	b.ReportMetric(float64(took.Microseconds())/float64(count), "us/mount")
}

// resident is this process's memory that no other shares, bytes.
func resident(tb testing.TB) int64 {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return n << 10
		}
	}
	tb.Skip("needs RssAnon in /proc/self/status")
	return 0
}
