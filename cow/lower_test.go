package cow

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/layer"
)

// memLower is a Lower in memory. It never changes once it is used.
type memLower struct {
	files map[uint64]*memFile
	next  uint64

	readBytes atomic.Int64 // of content that was asked for
}

type memFile struct {
	attr   fs.Attr
	data   []byte
	target string
	xattrs map[string]string
	names  []string
	kids   map[string]uint64
}

func newMemLower() *memLower {
	l := &memLower{files: make(map[uint64]*memFile), next: 1 << 24}
	l.files[fs.Root] = &memFile{attr: fs.Attr{Mode: unix.S_IFDIR | 0o755, Nlink: 2, Size: 4096, Mtime: layer.Time{Sec: 1000}}, kids: map[string]uint64{}}
	return l
}

// walk returns a directory, making what is missing.
func (l *memLower) walk(dir string) *memFile {
	f := l.files[fs.Root]
	for _, part := range strings.Split(dir, "/") {
		if part == "" || part == "." {
			continue
		}
		id, ok := f.kids[part]
		if !ok {
			id = l.insert(f, part, &memFile{attr: fs.Attr{Mode: unix.S_IFDIR | 0o755, Nlink: 2, Size: 4096, Mtime: layer.Time{Sec: 2000}}, kids: map[string]uint64{}})
			f.attr.Nlink++
		}
		f = l.files[id]
	}
	return f
}

func (l *memLower) insert(dir *memFile, name string, f *memFile) uint64 {
	l.next++
	l.files[l.next] = f
	l.name(dir, name, l.next)
	return l.next
}

func (l *memLower) name(dir *memFile, name string, id uint64) {
	dir.kids[name] = id
	dir.names = append(dir.names, name)
	sort.Strings(dir.names)
}

func (l *memLower) file(path, data string, mode uint32) *memFile {
	dir, name := filepath.Split(path)
	f := &memFile{attr: fs.Attr{Mode: unix.S_IFREG | mode, Nlink: 1, Size: int64(len(data)), Mtime: layer.Time{Sec: 3000, Nsec: 7}}, data: []byte(data)}
	l.insert(l.walk(dir), name, f)
	return f
}

func (l *memLower) special(path string, mode, rdev uint32) *memFile {
	f := l.file(path, "", 0)
	f.attr.Mode, f.attr.Rdev = mode, rdev
	return f
}

func (l *memLower) symlink(path, target string) {
	f := l.file(path, "", 0)
	f.attr.Mode, f.target, f.attr.Size = unix.S_IFLNK|0o777, target, int64(len(target))
}

func (l *memLower) link(old, path string) {
	dir, name := filepath.Split(old)
	id := l.walk(dir).kids[name]
	l.files[id].attr.Nlink++
	dir, name = filepath.Split(path)
	l.name(l.walk(dir), name, id)
}

func (l *memLower) get(id uint64) (*memFile, error) {
	if f := l.files[id]; f != nil {
		return f, nil
	}
	return nil, syscall.ESTALE
}

func (l *memLower) Lookup(_ context.Context, parent uint64, name string) (uint64, fs.Attr, error) {
	f, err := l.get(parent)
	if err != nil {
		return 0, fs.Attr{}, err
	}
	id, ok := f.kids[name]
	if !ok {
		return 0, fs.Attr{}, syscall.ENOENT
	}
	return id, l.files[id].attr, nil
}

func (l *memLower) Attr(_ context.Context, id uint64) (fs.Attr, error) {
	f, err := l.get(id)
	if err != nil {
		return fs.Attr{}, err
	}
	return f.attr, nil
}

func (l *memLower) ReadDir(_ context.Context, id uint64, from int, fn func(string, uint64, fs.Attr) bool) error {
	f, err := l.get(id)
	if err != nil {
		return err
	}
	for _, name := range f.names[min(from, len(f.names)):] {
		if !fn(name, f.kids[name], l.files[f.kids[name]].attr) {
			return nil
		}
	}
	return nil
}

func (l *memLower) Readlink(_ context.Context, id uint64) (string, error) {
	f, err := l.get(id)
	if err != nil {
		return "", err
	}
	return f.target, nil
}

func (l *memLower) Getxattr(_ context.Context, id uint64, name string) ([]byte, error) {
	f, err := l.get(id)
	if err != nil {
		return nil, err
	}
	if v, ok := f.xattrs[name]; ok {
		return []byte(v), nil
	}
	return nil, syscall.ENODATA
}

func (l *memLower) Listxattr(_ context.Context, id uint64) (names []string, err error) {
	f, err := l.get(id)
	if err != nil {
		return nil, err
	}
	for name := range f.xattrs {
		names = append(names, name)
	}
	return names, nil
}

func (l *memLower) ReadAt(_ context.Context, id uint64, p []byte, off int64) (int, error) {
	f, err := l.get(id)
	if err != nil {
		return 0, err
	}
	if off >= int64(len(f.data)) {
		return 0, nil
	}
	n := copy(p, f.data[off:])
	l.readBytes.Add(int64(n))
	return n, nil
}

// sampleLower is a small image: /etc with files, a symlink and hard links, /opt with a tree, /big.
func sampleLower() *memLower {
	l := newMemLower()
	l.file("etc/debian_version", "12.5\n", 0o644)
	l.file("etc/passwd", "root:x:0:0\n", 0o644)
	l.file("etc/shadow", "secret\n", 0o640).attr.GID = 42
	l.symlink("etc/localtime", "/usr/share/zoneinfo/UTC")
	l.file("bin/su", "#!su", 0o4755)
	l.file("bin/busybox", "#!busybox", 0o755)
	l.link("bin/busybox", "bin/ls")
	l.link("bin/busybox", "bin/cat")
	l.file("opt/app/main.py", "print(1)\n", 0o755).xattrs = map[string]string{"user.note": "hi", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	l.file("opt/app/lib/a.py", "a\n", 0o644)
	l.file("opt/app/lib/b.py", "b\n", 0o644)
	l.special("dev/null", unix.S_IFCHR|0o666, mkdev(1, 3))
	l.special("run/fifo", unix.S_IFIFO|0o600, 0)
	big := make([]byte, 1<<20+123)
	for i := range big {
		big[i] = byte(i / 4096)
	}
	l.file("big", string(big), 0o644)
	l.walk("tmp").attr.Mode |= 0o1777
	l.walk("empty")
	return l
}

// mounted is an FS behind a real FUSE mount.
type mounted struct {
	t     testing.TB
	dir   string // the mount point
	upper string
	lower Lower
	o     Options
	most  int // of a listing's names at a time; 0 is as ever
	fs    *FS
	srv   *fuse.Server
}

func mount(t testing.TB, lower Lower, o Options) *mounted {
	t.Helper()
	m := &mounted{t: t, dir: t.TempDir(), upper: t.TempDir(), lower: lower, o: o}
	m.start()
	t.Cleanup(func() {
		if m.srv != nil {
			m.stop()
		}
	})
	return m
}

func (m *mounted) start() {
	m.t.Helper()
	var err error
	if m.fs, err = New(m.lower, m.upper, m.o); err != nil {
		m.t.Fatal(err)
	}
	m.fs.listings.most = m.most
	opts := ServerOptions(&fuse.MountOptions{Name: "cowtest", FsName: "cowtest", AllowOther: true, MaxWrite: 512 << 10,
		DirectMountStrict: os.Geteuid() == 0, DirectMountFlags: unix.MS_MGC_VAL})
	if os.Geteuid() != 0 {
		opts.AllowOther = false
	}
	if m.srv, err = fuse.NewServer(m.fs, m.dir, opts); err != nil {
		m.t.Fatal(err)
	}
	go m.srv.Serve()
	if err := m.srv.WaitMount(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mounted) stop() {
	m.t.Helper()
	err := m.srv.Unmount()
	for range 50 { // somebody may be looking at all mounts
		if err == nil || !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(100 * time.Millisecond)
		err = m.srv.Unmount()
	}
	if err != nil {
		m.t.Error(err)
		unix.Unmount(m.dir, unix.MNT_DETACH)
	}
	m.srv.Wait()
	m.srv = nil
	if err := m.fs.Close(); err != nil {
		m.t.Error(err)
	}
}

func (m *mounted) remount() {
	m.t.Helper()
	m.stop()
	m.start()
}

func (m *mounted) path(p string) string { return filepath.Join(m.dir, p) }
