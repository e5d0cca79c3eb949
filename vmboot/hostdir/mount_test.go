package hostdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/microsandbox/msb-fs/fs"
)

// mount shows src to this machine's kernel, whose FUSE client is the guests', and returns where.
func mount(t *testing.T, src string, o Options) (dir string, f *FS) {
	t.Helper()
	f, err := Open(src, o)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	m, err := fs.Mount(context.Background(), f, dir, fs.MountOptions{Adjust: func(old *fuse.MountOptions) *fuse.MountOptions {
		opts := ServerOptions()
		opts.Logger, opts.PanicHandler = old.Logger, func(v any) fuse.Status {
			t.Errorf("panic: %v", v)
			return fuse.EIO
		}
		return opts
	}})
	if err != nil {
		f.Close()
		t.Skipf("no FUSE mounts here: %v", err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir, f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func wantFile(t *testing.T, path, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != text {
		t.Fatalf("%s: %q, %v; want %q", path, b, err, text)
	}
}

func TestPosix(t *testing.T) {
	for name, fn := range posixtest.All {
		if name == "FcntlFlockLocksFile" || name == "XAttr" || name == "XAttrLarge" || strings.HasPrefix(name, "XAttr") {
			continue // locks are the kernel's own, and there are no attributes
		}
		t.Run(name, func(t *testing.T) {
			dir, _ := mount(t, t.TempDir(), Options{})
			fn(t, dir)
		})
	}
}

func TestSeesTheHost(t *testing.T) {
	src := t.TempDir()
	write(t, src+"/a", "one")
	dir, _ := mount(t, src, Options{})
	wantFile(t, dir+"/a", "one")
	open, err := os.Open(dir + "/a")
	must(t, err)
	defer open.Close()

	write(t, src+"/a", "two and more") // in place
	within(t, func() error { return same(dir+"/a", "two and more") })
	within(t, func() error {
		b := make([]byte, 100)
		n, err := open.ReadAt(b, 0)
		if string(b[:n]) != "two and more" {
			return fmt.Errorf("the file that is open reads %q, %v", b[:n], err)
		}
		return nil
	})
	write(t, src+"/new", "three") // another in its place, as editors do
	must(t, os.Rename(src+"/new", src+"/a"))
	within(t, func() error { return same(dir+"/a", "three") })

	if _, err := os.Stat(dir + "/later"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	write(t, src+"/later", "x")
	wantFile(t, dir+"/later", "x") // that it was not there is not remembered
	must(t, os.Remove(src+"/later"))
	within(t, func() error {
		if _, err := os.Stat(dir + "/later"); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("a deleted file is still there: %v", err)
		}
		return nil
	})
	must(t, os.MkdirAll(src+"/d/e", 0o755))
	write(t, src+"/d/e/f", "deep")
	wantFile(t, dir+"/d/e/f", "deep")
	must(t, os.Rename(src+"/d", src+"/moved"))
	within(t, func() error { return same(dir+"/moved/e/f", "deep") })
}

func same(path, text string) error {
	b, err := os.ReadFile(path)
	if err == nil && string(b) != text {
		err = fmt.Errorf("%s: %q, want %q", path, b, text)
	}
	return err
}

// within gives a change of the host the time that the kernel may believe what it knows, and a loaded machine more.
func within(t *testing.T, ok func() error) {
	t.Helper()
	var err error
	for range 100 {
		if err = ok(); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal(err)
}

func TestWorkInMovedDirectory(t *testing.T) {
	src := t.TempDir()
	dir, _ := mount(t, src, Options{})
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	b, err := os.OpenRoot(dir + "/a/b") // as a process whose working directory it is
	must(t, err)
	defer b.Close()
	must(t, os.Rename(dir+"/a", dir+"/c"))
	must(t, b.WriteFile("x", []byte("x"), 0o644))
	wantFile(t, src+"/c/b/x", "x")
	must(t, os.Mkdir(dir+"/a", 0o755))
	must(t, b.Rename("x", "y"))
	wantFile(t, src+"/c/b/y", "x")
}

func TestFilesWithoutName(t *testing.T) {
	src := t.TempDir()
	dir, f := mount(t, src, Options{})
	h, err := os.Create(dir + "/a")
	must(t, err)
	must(t, os.Remove(dir+"/a"))
	_, err = h.WriteString("still here")
	must(t, err)
	must(t, h.Truncate(5))
	must(t, h.Chmod(0o600))
	b := make([]byte, 20)
	if n, err := h.ReadAt(b, 0); string(b[:n]) != "still" || err != io.EOF {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	if st, err := h.Stat(); err != nil || st.Size() != 5 || st.Sys().(*syscall.Stat_t).Nlink != 0 {
		t.Fatalf("%v, %v", st, err)
	}
	must(t, h.Close())
	within(t, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.handles) != 0 {
			return fmt.Errorf("%d handles are left", len(f.handles))
		}
		return nil
	})
}

func TestAppend(t *testing.T) {
	src := t.TempDir()
	dir, _ := mount(t, src, Options{})
	guest, err := os.OpenFile(dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	defer guest.Close()
	host, err := os.OpenFile(src+"/log", os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer host.Close()
	for range 3 {
		_, err := guest.WriteString("guest\n")
		must(t, err)
		_, err = host.WriteString("host\n")
		must(t, err)
	}
	wantFile(t, src+"/log", strings.Repeat("guest\nhost\n", 3))
}

func TestManyEntries(t *testing.T) {
	src := t.TempDir()
	var want []string
	for i := range 3000 {
		name := fmt.Sprintf("%04d-%s", i, strings.Repeat("n", i%200))
		want = append(want, name)
		write(t, filepath.Join(src, name), "")
	}
	dir, _ := mount(t, src, Options{})
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	for range 2 {
		got, err := d.Readdirnames(-1)
		must(t, err)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%d names, want %d", len(got), len(want))
		}
		_, err = d.Seek(0, io.SeekStart)
		must(t, err)
	}
}

func TestOneFile(t *testing.T) {
	src := filepath.Join(t.TempDir(), "conf")
	write(t, src, "text")
	dir, f := mount(t, src, Options{})
	if !f.IsFile() {
		t.Fatal("not a file")
	}
	wantFile(t, dir+"/"+FileName, "text")
	write(t, dir+"/"+FileName, "other")
	wantFile(t, src, "other")
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Fatalf("%v, %v", names, err)
	}
	for what, err := range map[string]error{
		"create": os.WriteFile(dir+"/x", nil, 0o644), "remove": os.Remove(dir + "/" + FileName),
		"link": os.Link(dir+"/"+FileName, dir+"/y"), "rename": os.Rename(dir+"/"+FileName, dir+"/y"),
	} {
		if err == nil {
			t.Errorf("%s beside the file succeeded", what)
		}
	}
}

func TestReadOnly(t *testing.T) {
	src := t.TempDir()
	write(t, src+"/a", "text")
	must(t, os.Mkdir(src+"/d", 0o755))
	dir, _ := mount(t, src, Options{ReadOnly: true}) // the mount itself is not
	wantFile(t, dir+"/a", "text")
	for what, fn := range map[string]func() error{
		"write":    func() error { return os.WriteFile(dir+"/a", []byte("x"), 0o644) },
		"append":   func() error { _, err := os.OpenFile(dir+"/a", os.O_APPEND|os.O_WRONLY, 0); return err },
		"truncate": func() error { return os.Truncate(dir+"/a", 0) },
		"create":   func() error { return os.WriteFile(dir+"/n", nil, 0o644) },
		"mkdir":    func() error { return os.Mkdir(dir+"/n", 0o755) },
		"mkfifo":   func() error { return syscall.Mkfifo(dir+"/n", 0o644) },
		"symlink":  func() error { return os.Symlink("a", dir+"/n") },
		"link":     func() error { return os.Link(dir+"/a", dir+"/n") },
		"rename":   func() error { return os.Rename(dir+"/a", dir+"/n") },
		"unlink":   func() error { return os.Remove(dir + "/a") },
		"rmdir":    func() error { return syscall.Rmdir(dir + "/d") },
		"chmod":    func() error { return os.Chmod(dir+"/a", 0o600) },
		"chown":    func() error { return os.Chown(dir+"/a", 1, 1) },
		"utimes":   func() error { return os.Chtimes(dir+"/a", time.Unix(1, 0), time.Unix(1, 0)) },
	} {
		if err := fn(); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}
	wantFile(t, src+"/a", "text")
}
