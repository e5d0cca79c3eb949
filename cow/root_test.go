package cow

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/layer"
)

// streaming is a lower that does not know what its directories look like until it has come.
type streaming struct {
	*memLower
	come chan struct{}
	once sync.Once
}

func newStreaming(l *memLower) *streaming { return &streaming{memLower: l, come: make(chan struct{})} }

func (l *streaming) end() { l.once.Do(func() { close(l.come) }) }

func (l *streaming) known() bool {
	select {
	case <-l.come:
		return true
	default:
		return false
	}
}

func (l *streaming) vague(a fs.Attr) fs.Attr {
	if a.IsDir() && !l.known() {
		return fs.Attr{Mode: unix.S_IFDIR | 0o755, Nlink: 1, Size: 4096, Provisional: true, Implied: true}
	}
	return a
}

func (l *streaming) Attr(ctx context.Context, id uint64) (fs.Attr, error) {
	a, err := l.memLower.Attr(ctx, id)
	return l.vague(a), err
}

func (l *streaming) Lookup(ctx context.Context, parent uint64, name string) (uint64, fs.Attr, error) {
	id, a, err := l.memLower.Lookup(ctx, parent, name)
	return id, l.vague(a), err
}

func (l *streaming) Getxattr(ctx context.Context, id uint64, name string) ([]byte, error) {
	if !l.known() {
		return nil, unix.ENODATA
	}
	return l.memLower.Getxattr(ctx, id, name)
}

func (l *streaming) Listxattr(ctx context.Context, id uint64) ([]string, error) {
	if !l.known() {
		return nil, nil
	}
	return l.memLower.Listxattr(ctx, id)
}

func (l *streaming) ReadDir(ctx context.Context, id uint64, from int, fn func(string, uint64, fs.Attr) bool) error {
	select {
	case <-l.come:
		return l.memLower.ReadDir(ctx, id, from, fn)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rootedLower is sampleLower with a root directory that nobody would guess.
func rootedLower() *memLower {
	l := sampleLower()
	root := l.files[fs.Root]
	root.attr.Mode, root.attr.UID, root.attr.GID = unix.S_IFDIR|0o2751, 7, 8
	root.attr.Mtime = layer.Time{Sec: 123456, Nsec: 789}
	root.xattrs = map[string]string{"user.root": "yes"}
	etc := l.walk("etc")
	etc.attr.Mode, etc.attr.UID, etc.attr.Mtime = unix.S_IFDIR|0o1750, 9, layer.Time{Sec: 4242}
	return l
}

// An upper made while the lower is on its way shows, and keeps, what the lower's directories turn out to be.
func TestStreamingLower(t *testing.T) {
	want, err := describe(mount(t, rootedLower(), Options{}).dir)
	must(t, err)
	t.Run("untouched", func(t *testing.T) {
		l := newStreaming(rootedLower())
		m := mount(t, l, Options{})
		st, err := os.Stat(m.dir)
		must(t, err)
		if st.Mode().Perm() != 0o755 {
			t.Errorf("before it is known the root is %v", st.Mode())
		}
		m.remount() // not known yet
		l.end()
		for range 2 {
			got, err := describe(m.dir)
			must(t, err)
			if got != want {
				t.Errorf("the root is %s\nwant        %s", got, want)
			}
			m.remount()
		}
	})
	t.Run("with something in it", func(t *testing.T) {
		l := newStreaming(rootedLower())
		m := mount(t, l, Options{})
		must(t, os.WriteFile(m.path("new"), nil, 0o644)) // does not wait
		m.remount()
		l.end()
		m.remount()
		var st unix.Stat_t
		must(t, unix.Stat(m.dir, &st))
		if st.Mode&07777 != 0o2751 || st.Uid != 7 || time.Since(time.Unix(st.Mtim.Unix())) > time.Hour {
			t.Errorf("the root is %o of %d, changed %v", st.Mode, st.Uid, time.Unix(st.Mtim.Unix()))
		}
	})
	for name, change := range map[string]func(m *mounted) error{
		"chmod of the root":  func(m *mounted) error { return os.Chmod(m.dir, 0o700) },
		"xattr of the root":  func(m *mounted) error { return unix.Setxattr(m.dir, "user.new", []byte("x"), 0) },
		"create":             func(m *mounted) error { return os.WriteFile(m.path("etc/new"), nil, 0o644) },
		"unlink":             func(m *mounted) error { return os.Remove(m.path("etc/passwd")) },
		"mkdir":              func(m *mounted) error { return os.Mkdir(m.path("etc/new"), 0o755) },
		"chmod":              func(m *mounted) error { return os.Chmod(m.path("etc"), 0o700) },
		"chmod of a file":    func(m *mounted) error { return os.Chmod(m.path("etc/passwd"), 0o600) },
		"rename":             func(m *mounted) error { return os.Rename(m.path("etc"), m.path("new")) },
		"write to a file":    func(m *mounted) error { return os.WriteFile(m.path("etc/passwd"), []byte("x"), 0) },
		"link":               func(m *mounted) error { return os.Link(m.path("etc/passwd"), m.path("new")) },
		"rename into it":     func(m *mounted) error { return os.Rename(m.path("big"), m.path("etc/big")) },
		"chown by a default": func(m *mounted) error { return os.Lchown(m.path("etc"), -1, 5) },
	} {
		t.Run(name, func(t *testing.T) {
			sure := mount(t, rootedLower(), Options{})
			must(t, change(sure))
			l := newStreaming(rootedLower())
			m := mount(t, l, Options{})
			t.Cleanup(l.end)
			changed := make(chan error, 1)
			go func() { changed <- change(m) }()
			select {
			case err := <-changed:
				t.Errorf("it did not wait: %v", err)
			case <-time.After(20 * time.Millisecond):
				l.end()
				must(t, <-changed)
			}
			wantSame(t, lookAll(t, sure.dir), lookAll(t, m.dir))
		})
	}
}
