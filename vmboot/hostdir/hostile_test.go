package hostdir

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func open(t *testing.T, src string, o Options) *FS {
	t.Helper()
	f, err := Open(src, o)
	must(t, err)
	t.Cleanup(func() { must(t, f.Close()) })
	return f
}

func at(id uint64) *fuse.InHeader { return &fuse.InHeader{NodeId: id} }

func lookup(t *testing.T, f *FS, dir uint64, s string) uint64 {
	t.Helper()
	var out fuse.EntryOut
	if st := f.Lookup(nil, at(dir), s, &out); !st.Ok() {
		t.Fatalf("lookup %s: %v", s, st)
	}
	return out.NodeId
}

// changes are the requests that make or unmake something called s in a directory.
func changes(f *FS, dir, file uint64, s string) map[string]fuse.Status {
	var e fuse.EntryOut
	var c fuse.CreateOut
	return map[string]fuse.Status{
		"lookup":  f.Lookup(nil, at(dir), s, &e),
		"create":  f.Create(nil, &fuse.CreateIn{InHeader: *at(dir), Flags: unix.O_RDWR, Mode: 0o644}, s, &c),
		"mkdir":   f.Mkdir(nil, &fuse.MkdirIn{InHeader: *at(dir), Mode: 0o755}, s, &e),
		"mknod":   f.Mknod(nil, &fuse.MknodIn{InHeader: *at(dir), Mode: unix.S_IFIFO | 0o644}, s, &e),
		"symlink": f.Symlink(nil, at(dir), "x", s, &e),
		"link":    f.Link(nil, &fuse.LinkIn{InHeader: *at(dir), Oldnodeid: file}, s, &e),
		"rename":  f.Rename(nil, &fuse.RenameIn{InHeader: *at(fuse.FUSE_ROOT_ID), Newdir: dir}, "file", s),
		"unlink":  f.Unlink(nil, at(dir), s),
		"rmdir":   f.Rmdir(nil, at(dir), s),
	}
}

func TestNamesStayInside(t *testing.T) {
	top := t.TempDir()
	src := filepath.Join(top, "src")
	must(t, os.Mkdir(src, 0o755))
	write(t, src+"/file", "x")
	write(t, top+"/outside", "x")
	f := open(t, src, Options{})
	file := lookup(t, f, fuse.FUSE_ROOT_ID, "file")
	for _, s := range []string{"", ".", "..", "../outside", "/etc/passwd", "a/b", "x\x00y", strings.Repeat("n", 256)} {
		for what, st := range changes(f, fuse.FUSE_ROOT_ID, file, s) {
			if st.Ok() {
				t.Errorf("%s %q succeeded", what, s)
			}
		}
	}
	for _, id := range []uint64{0, 2 + file, 1 << 60} {
		for what, st := range changes(f, id, file, "n") {
			if st.Ok() {
				t.Errorf("%s in node %d succeeded", what, id)
			}
		}
	}
}

// A directory that the guest knows is exchanged on the host for a symbolic link, again and again, while the guest works in
// it: whatever succeeds has happened inside.
func TestLinksAreNotFollowed(t *testing.T) {
	top := t.TempDir()
	src, outside := filepath.Join(top, "src"), filepath.Join(top, "outside")
	must(t, os.MkdirAll(src+"/dir", 0o755))
	must(t, os.Mkdir(outside, 0o755))
	write(t, src+"/file", "x")
	write(t, outside+"/secret", "secret")
	must(t, os.Symlink(outside, src+"/link"))
	must(t, os.Symlink(outside+"/secret", src+"/filelink"))
	f := open(t, src, Options{})
	file, dir := lookup(t, f, fuse.FUSE_ROOT_ID, "file"), lookup(t, f, fuse.FUSE_ROOT_ID, "dir")

	link := lookup(t, f, fuse.FUSE_ROOT_ID, "link")
	for what, st := range changes(f, link, file, "secret") {
		if st.Ok() {
			t.Errorf("%s through a symbolic link succeeded", what)
		}
	}
	var out fuse.OpenOut
	if st := f.Open(nil, &fuse.OpenIn{InHeader: *at(lookup(t, f, fuse.FUSE_ROOT_ID, "filelink"))}, &out); st.Ok() {
		t.Error("a symbolic link was opened")
	}

	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, src+"/dir", unix.AT_FDCWD, src+"/link", unix.RENAME_EXCHANGE)
			}
		}
	})
	for range 3000 {
		changes(f, dir, file, "n")
		changes(f, dir, file, "secret")
	}
	close(stop)
	wg.Wait()
	if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
		t.Errorf("outside: %v, %v", names, err)
	}
	wantFile(t, outside+"/secret", "secret")
}

func TestNoPrivilegeIsLeftBehind(t *testing.T) {
	src := t.TempDir()
	write(t, src+"/suid", "#!/bin/sh\n")
	must(t, os.Chmod(src+"/suid", 0o755|os.ModeSetuid|os.ModeSetgid))
	f := open(t, src, Options{})
	var e fuse.EntryOut
	for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFDIR, unix.S_IFLNK, 0} {
		if st := f.Mknod(nil, &fuse.MknodIn{InHeader: *at(fuse.FUSE_ROOT_ID), Mode: kind | 0o666, Rdev: 0x103}, "dev", &e); st != fuse.EPERM {
			t.Errorf("mknod of kind %o: %v", kind, st)
		}
	}
	if st := f.Lookup(nil, at(fuse.FUSE_ROOT_ID), "suid", &e); !st.Ok() || e.Mode != unix.S_IFREG|0o755 {
		t.Errorf("a set-uid file is shown as %o, %v", e.Mode, st)
	}
	// Whoever may write to the file must not become its owner by running it.
	var out fuse.OpenOut
	if st := f.Open(nil, &fuse.OpenIn{InHeader: *at(e.NodeId), Flags: unix.O_WRONLY}, &out); !st.Ok() {
		t.Fatal(st)
	}
	wantMode(t, src+"/suid", 0o755)

	var c fuse.CreateOut
	if st := f.Create(nil, &fuse.CreateIn{InHeader: *at(fuse.FUSE_ROOT_ID), Flags: unix.O_WRONLY, Mode: 0o6755}, "made", &c); !st.Ok() {
		t.Fatal(st)
	}
	wantMode(t, src+"/made", 0o755)
	in := &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: *at(c.NodeId), Valid: fuse.FATTR_MODE, Mode: 0o6711}}
	if st := f.SetAttr(nil, in, new(fuse.AttrOut)); !st.Ok() {
		t.Fatal(st)
	}
	wantMode(t, src+"/made", 0o711)
}

func wantMode(t *testing.T, path string, mode uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	if st.Mode&0o7777 != mode {
		t.Errorf("%s has mode %o, want %o", path, st.Mode&0o7777, mode)
	}
}

// Opening a FIFO would wait for its other end, and opening a device may do anything.
func TestOnlyFilesAreOpened(t *testing.T) {
	src := t.TempDir()
	must(t, syscall.Mkfifo(src+"/fifo", 0o644))
	f := open(t, src, Options{})
	fifo := lookup(t, f, fuse.FUSE_ROOT_ID, "fifo")
	var out fuse.OpenOut
	for _, flags := range []uint32{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR} {
		if st := f.Open(nil, &fuse.OpenIn{InHeader: *at(fifo), Flags: flags}, &out); st.Ok() {
			t.Error("a FIFO was opened")
		}
		var c fuse.CreateOut
		if st := f.Create(nil, &fuse.CreateIn{InHeader: *at(fuse.FUSE_ROOT_ID), Flags: flags}, "fifo", &c); st.Ok() {
			t.Error("a FIFO was opened by creating it")
		}
	}
	if st := f.OpenDir(nil, &fuse.OpenIn{InHeader: *at(fifo)}, &out); st.Ok() {
		t.Error("a FIFO was opened as a directory")
	}
}

// Handles of one file do not serve another, nor do those that are closed.
func TestHandlesAreChecked(t *testing.T) {
	src := t.TempDir()
	write(t, src+"/a", "aaaa")
	write(t, src+"/b", "bbbb")
	f := open(t, src, Options{})
	a, b := lookup(t, f, fuse.FUSE_ROOT_ID, "a"), lookup(t, f, fuse.FUSE_ROOT_ID, "b")
	var out fuse.OpenOut
	if st := f.Open(nil, &fuse.OpenIn{InHeader: *at(a)}, &out); !st.Ok() {
		t.Fatal(st)
	}
	buf := make([]byte, 4)
	for _, c := range []struct {
		id, fh uint64
		ok     bool
	}{{a, out.Fh, true}, {b, out.Fh, false}, {a, out.Fh + 1, false}, {fuse.FUSE_ROOT_ID, out.Fh, false}} {
		if _, st := f.Read(nil, &fuse.ReadIn{InHeader: *at(c.id), Fh: c.fh}, buf); st.Ok() != c.ok {
			t.Errorf("read of node %d by handle %d: %v", c.id, c.fh, st)
		}
	}
	if _, st := f.Write(nil, &fuse.WriteIn{InHeader: *at(a), Fh: out.Fh}, buf); st.Ok() {
		t.Error("a file open for reading was written")
	}
	if st := f.ReadDir(nil, &fuse.ReadIn{InHeader: *at(a), Fh: out.Fh}, fuse.NewDirEntryList(make([]byte, 4096), 0)); st.Ok() {
		t.Error("a file was listed")
	}
	f.Release(nil, &fuse.ReleaseIn{InHeader: *at(a), Fh: out.Fh})
	f.Release(nil, &fuse.ReleaseIn{InHeader: *at(a), Fh: out.Fh})
	if _, st := f.Read(nil, &fuse.ReadIn{InHeader: *at(a), Fh: out.Fh}, buf); st.Ok() {
		t.Error("a closed file was read")
	}
}

func TestTablesAreBounded(t *testing.T) {
	src := t.TempDir()
	must(t, os.MkdirAll(src+"/d/e", 0o755))
	write(t, src+"/d/e/f", "x")
	f := open(t, src, Options{})
	d := lookup(t, f, fuse.FUSE_ROOT_ID, "d")
	e := lookup(t, f, d, "e")
	file := lookup(t, f, e, "f")

	f.maxHandles = 3
	var out fuse.OpenOut
	var handles []uint64
	for range 3 {
		if st := f.Open(nil, &fuse.OpenIn{InHeader: *at(file)}, &out); !st.Ok() {
			t.Fatal(st)
		}
		handles = append(handles, out.Fh)
	}
	if st := f.Open(nil, &fuse.OpenIn{InHeader: *at(file)}, &out); st != fuse.Status(unix.ENFILE) {
		t.Errorf("the fourth of three handles: %v", st)
	}
	for _, fh := range handles {
		f.Release(nil, &fuse.ReleaseIn{InHeader: *at(file), Fh: fh})
	}
	// Directories stay while something below them is known, and go with it.
	f.Forget(d, 1)
	f.Forget(e, 1)
	if _, st := f.Readlink(nil, at(file)); st != fuse.EINVAL {
		t.Error(st)
	}
	if st := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: *at(file)}, new(fuse.AttrOut)); !st.Ok() {
		t.Errorf("a file whose directories were forgotten: %v", st)
	}
	f.Forget(file, 1<<63) // more than it was ever told
	if len(f.nodes) != 1 || len(f.byKey) != 1 {
		t.Errorf("%d nodes are left, want the root", len(f.nodes))
	}
	f.Forget(fuse.FUSE_ROOT_ID, 1<<63)
	lookup(t, f, fuse.FUSE_ROOT_ID, "d")
}

// What is remembered of names may be out of date, even go in circles.
func TestCirclesEnd(t *testing.T) {
	src := t.TempDir()
	must(t, os.MkdirAll(src+"/a/b", 0o755))
	f := open(t, src, Options{})
	a := lookup(t, f, fuse.FUSE_ROOT_ID, "a")
	b := lookup(t, f, a, "b")
	must(t, os.Rename(src+"/a/b", src+"/b"))
	must(t, os.Rename(src+"/a", src+"/b/a"))
	f.moved(f.nodes[a].key, name{f.root, "a"}, name{f.nodes[b], "a"}) // as a lookup that was overtaken would
	if st := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: *at(a)}, new(fuse.AttrOut)); st != fuse.Status(unix.ESTALE) {
		t.Errorf("a circle: %v", st)
	}
	if got := lookup(t, f, fuse.FUSE_ROOT_ID, "b"); got != b {
		t.Errorf("the directory has number %d, and had %d", got, b)
	}
	if st := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: *at(a)}, new(fuse.AttrOut)); !st.Ok() {
		t.Errorf("found again: %v", st)
	}
}

func TestDeepPaths(t *testing.T) {
	src := t.TempDir()
	f := open(t, src, Options{})
	id := uint64(fuse.FUSE_ROOT_ID)
	long := strings.Repeat("d", 250)
	for range 40 { // more than PATH_MAX
		var out fuse.EntryOut
		if st := f.Mkdir(nil, &fuse.MkdirIn{InHeader: *at(id), Mode: 0o755}, long, &out); !st.Ok() {
			t.Fatal(st)
		}
		id = out.NodeId
	}
	if st := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: *at(id)}, new(fuse.AttrOut)); !st.Ok() {
		t.Error(st)
	}
}

func TestUsers(t *testing.T) {
	for _, c := range []struct {
		o        owner
		uid, gid uint32
		wantUID  uint32
		wantGID  uint32
	}{
		{owner{}, 5, 6, 5, 6},
		{owner{mapped: true, uid: 1000, gid: 100}, 1000, 100, 0, 0},
		{owner{mapped: true, uid: 1000, gid: 100}, 0, 0, nobody, nobody},
	} {
		if u, g := c.o.shown(c.uid, c.gid); u != c.wantUID || g != c.wantGID {
			t.Errorf("%+v shows %d:%d as %d:%d", c.o, c.uid, c.gid, u, g)
		}
	}
	o := owner{mapped: true, uid: 1000}
	if err := o.chown(-1, 0, -1); err != nil {
		t.Errorf("to oneself: %v", err)
	}
	if err := o.chown(-1, 1, -1); err != unix.EPERM {
		t.Errorf("to another: %v", err)
	}
}
