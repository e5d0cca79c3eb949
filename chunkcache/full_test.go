package chunkcache

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/db"
	"golang.org/x/sys/unix"
)

// tmpfs mounts a file system of n bytes.
func tmpfs(t *testing.T, n string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+n); err != nil {
		t.Skipf("needs a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// warnings collects what a user would be told.
type warnings struct {
	mu  sync.Mutex
	all []error
}

func (w *warnings) add(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, err)
}

func (w *warnings) expectFull(t *testing.T, n int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, err := range w.all {
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("warning: %v", err)
		}
	}
	if len(w.all) != n {
		t.Errorf("%d warnings where %d were due: %v", len(w.all), n, w.all)
	}
}

func TestDiskFull(t *testing.T) {
	disk := tmpfs(t, "8m")
	d, err := db.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var told warnings
	c, err := Open(d, disk, Options{MinFree: -1, Warn: told.add})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	kept := make(map[int]bool)
	const size, chunks = 200_000, 100
	for i := range chunks {
		k, data := chunk(uint64(i), size)
		if i%2 == 0 {
			want(t, c, k, data)
		} else if err := c.Put(t.Context(), k, data); err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
		kept[i] = c.Has(k)
	}
	told.expectFull(t, 1)
	if s := c.Stats(); !s.Full || s.Chunks < 30 || s.Chunks > 41 {
		t.Errorf("%+v", s)
	}
	for i := range chunks { // all is readable, kept or not, and what is kept is right
		k, data := chunk(uint64(i), size)
		if filled := want(t, c, k, data); filled == kept[i] && !c.Has(k) {
			t.Errorf("chunk %d: filled = %v", i, filled)
		}
	}
	for i := range chunks / 2 {
		k, _ := chunk(uint64(i), size)
		if err := c.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.commits.flush(); err != nil {
		t.Fatal(err)
	}
	if k, _ := put(t, c, 1000, size); !c.Has(k) || c.Stats().Full {
		t.Error("there is room again, and the chunk was not kept")
	}
}

func TestSpaceIsLeftForTheDatabase(t *testing.T) {
	disk := tmpfs(t, "64m")
	var told warnings
	h := open(t, disk, Options{MinFree: 32 << 20, Warn: told.add})
	const size = 500_000
	for i := range 100 {
		put(t, h.Cache, uint64(i), size)
	}
	told.expectFull(t, 1)
	free, err := freeBytes(disk)
	if err != nil || free < 24<<20 { // the database has taken some
		t.Errorf("%d bytes are free: %v", free, err)
	}
	filler := filepath.Join(disk, "filler") // somebody else takes all there is
	if err := os.WriteFile(filler, make([]byte, free-1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	k, data := chunk(0, size)
	if want(t, h.Cache, k, data) {
		t.Error("a chunk that was kept is gone")
	}
	e, err := h.find(&k)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Delete(k); err != nil { // cannot be written down now, and must not kill the process
		t.Fatal(err)
	}
	want(t, h.Cache, k, data)
	if err := h.commits.flush(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the database was written to a full disk: %v", err)
	}
	p := make([]byte, size)
	if _, err := e.seg.f.ReadAt(p, e.off); err != nil || !bytes.Equal(p, data) {
		t.Errorf("a place was freed that the index still names: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	for h.commits.flush() != nil { // until the committer has tried again
		time.Sleep(10 * time.Millisecond)
	}
	told.expectFull(t, 2)
	h = h.reopen(t, Options{MinFree: 8 << 20})
	if h.Has(k) {
		t.Error("the deletion was lost")
	}
	last, data := chunk(1, size)
	if want(t, h.Cache, last, data) || !want(t, h.Cache, k, data0(size)) {
		t.Error("wrong chunks were lost")
	}
	if !h.Has(k) {
		t.Error("not kept though there is room")
	}
}

func data0(size int) []byte { _, data := chunk(0, size); return data }
