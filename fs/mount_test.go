package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/chunkcache"
	"github.com/microsandbox/msb-fs/layer"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

var (
	_ Layer = (*layer.Layer)(nil)
	_ Cache = (*chunkcache.Cache)(nil)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// needMount skips a test where nothing can be mounted.
func needMount(t testing.TB) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	}
	unix.Close(fd)
	if os.Geteuid() != 0 {
		if _, err := os.Stat("/bin/fusermount3"); err != nil {
			t.Skip("needs root or fusermount3")
		}
	}
}

func TestMountReadOnly(t *testing.T) {
	needMount(t)
	dir := mountTree(t, sealedTree(t, Options{}, newLayer(file("f", "hello").mode(0o666), dir("d").mode(0o777), symlink("s", "f"))))
	for what, err := range map[string]error{
		"write":  os.WriteFile(dir+"/f", []byte("x"), 0),
		"create": os.WriteFile(dir+"/d/new", nil, 0o644),
		"mkdir":  os.Mkdir(dir+"/d/new", 0o755),
		"remove": os.Remove(dir + "/f"),
		"rename": os.Rename(dir+"/f", dir+"/g"),
		"chmod":  os.Chmod(dir+"/f", 0),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}
	if b, err := os.ReadFile(dir + "/s"); err != nil || string(b) != "hello" {
		t.Errorf("read through a symlink: %q, %v", b, err)
	}
	if _, err := os.Stat(dir + "/none"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("stat of nothing: %v", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Files != 4 || st.Namelen != 255 || st.Flags&(unix.ST_RDONLY|unix.ST_NODEV|unix.ST_NOSUID) != unix.ST_RDONLY|unix.ST_NODEV|unix.ST_NOSUID {
		t.Errorf("statfs: %+v, %v", st, err)
	}
}

// A big directory is listed whole, from any offset, whatever the size of the reader's buffer.
func TestMountBigDirectory(t *testing.T) {
	needMount(t)
	const n = 5000
	var items []item
	for i := range n {
		items = append(items, file(fmt.Sprintf("d/%s%05d", strings.Repeat("x", i%40), i), "x"))
	}
	dir := mountTree(t, sealedTree(t, Options{}, newLayer(items...)))
	f, err := os.Open(dir + "/d")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 {
		seen := map[string]bool{}
		for {
			names, err := f.Readdirnames(7)
			for _, s := range names {
				if seen[s] {
					t.Fatalf("%s listed twice", s)
				}
				seen[s] = true
			}
			if err != nil {
				break
			}
		}
		if len(seen) != n {
			t.Errorf("%d names, want %d", len(seen), n)
		}
		if _, err := f.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMountReads(t *testing.T) {
	needMount(t)
	body := strings.Repeat("0123456789abcdef", 200_000)
	dir := mountTree(t, sealedTree(t, Options{}, newLayer(file("big", body))))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f, err := os.Open(dir + "/big")
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			p := make([]byte, 70_000)
			for i := range 60 {
				off := int64((w*7919 + i*104729) % len(body))
				k, err := f.ReadAt(p, off)
				if want := body[off:min(off+int64(len(p)), int64(len(body)))]; string(p[:k]) != want {
					t.Errorf("read at %d: %d bytes, %v: wrong", off, k, err)
				}
			}
		}()
	}
	wg.Wait()
}

// While a layer streams, what has passed can be read and what may yet come is waited for.
func TestMountWhileStreaming(t *testing.T) {
	needMount(t)
	l := streamLayer(file("early", "1"), file("late", "2"), dir("d"))
	tree := newTree(t, Options{}, l)
	l.show(1)
	dir := mountTree(t, tree)
	if b, err := os.ReadFile(dir + "/early"); err != nil || string(b) != "1" {
		t.Errorf("early: %q, %v", b, err)
	}
	late, absent, list := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() { _, err := os.ReadFile(dir + "/late"); late <- err }()
	go func() { _, err := os.Stat(dir + "/absent"); absent <- err }()
	go func() { _, err := os.ReadDir(dir); list <- err }()
	l.show(3)
	if err := <-late; err != nil {
		t.Error(err)
	}
	select {
	case err := <-absent:
		t.Errorf("absent: %v before the layer has ended", err)
	case err := <-list:
		t.Errorf("list: %v before the layer has ended", err)
	case <-time.After(50 * time.Millisecond): // enough for a wrong answer to show
	}
	l.end()
	if err := <-absent; !errors.Is(err, syscall.ENOENT) {
		t.Errorf("absent: %v", err)
	}
	if err := <-list; err != nil {
		t.Error(err)
	}
	<-tree.Sealed()
	if names, err := filepath.Glob(dir + "/*"); err != nil || len(names) != 3 {
		t.Errorf("%q, %v", names, err)
	}
}

// An unmount ends whoever is inside.
func TestUnmountBusy(t *testing.T) {
	needMount(t)
	l := streamLayer(file("f", "1"))
	tree := newTree(t, Options{}, l)
	l.show(1)
	dir := t.TempDir()
	m, err := Mount(context.Background(), Raw(tree), dir, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blocked := make(chan error, 1)
	go func() { _, err := os.Stat(dir + "/never"); blocked <- err }()
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
	m.Wait()
	if err := <-blocked; err == nil {
		t.Error("a waiting stat was answered")
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("a file of an unmounted tree can be read")
	}
	if err := m.Unmount(); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := Unmount(context.Background(), dir); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

func TestMountErrors(t *testing.T) {
	needMount(t)
	tree := sealedTree(t, Options{}, newLayer())
	if _, err := Mount(context.Background(), Raw(tree), "/nonexistent/dir", MountOptions{}); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("mount on nothing: %v", err)
	}
}

// Once every layer has ended link counts are exact, whatever the kernel was told before.
func TestMountLinkCounts(t *testing.T) {
	needMount(t)
	l := streamLayer(file("a", "1"), hardlink("b", "a"), hardlink("c", "a"))
	tree := newTree(t, Options{}, l)
	l.show(1)
	dir := mountTree(t, tree)
	var st unix.Stat_t
	if err := unix.Stat(dir+"/a", &st); err != nil || st.Nlink != 1 {
		t.Errorf("nlink %d, %v", st.Nlink, err)
	}
	l.show(3)
	l.end()
	if _, err := os.ReadDir(dir); err != nil {
		t.Error(err)
	}
	if err := unix.Stat(dir+"/a", &st); err != nil || st.Nlink != 3 {
		t.Errorf("nlink %d, %v; want 3", st.Nlink, err)
	}
}

// What settles a mount does so on a thread with files of its own, where Go's runtime goes on with its own work: it collects garbage
// and looks for timers there too.
func TestSettlePollSparesTheRuntime(t *testing.T) {
	needMount(t)
	dir := mountTree(t, sealedTree(t, Options{}, newLayer(file("f", "x"))))
	var ended atomic.Bool
	var churn, settlers sync.WaitGroup
	for range 4 {
		churn.Go(func() {
			for !ended.Load() {
				time.Sleep(10 * time.Microsecond)
				runtime.GC()
			}
		})
	}
	for range 4 {
		settlers.Go(func() {
			for range 50 {
				settlePoll(dir)
			}
		})
	}
	settlers.Wait()
	ended.Store(true)
	churn.Wait()
}
