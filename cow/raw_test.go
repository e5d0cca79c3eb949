package cow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
)

// guest sends requests as a kernel never would: any node id, any name, any order, in parallel.
type guest struct {
	f   *FS
	r   *rand.Rand
	ids []uint64 // that it was told, some of them forgotten since
}

var hostileNames = []string{"", ".", "..", "a", "b", "c", "etc", "opt", "bin", "ls", "cat", "busybox", "app", "lib", "big", "passwd", "debian_version",
	"a/b", "../../../../etc/passwd", "/etc/passwd", ".wh.a", ".wh.etc", opaqueFile, privateDir, "x\x00y", strings.Repeat("n", 255), strings.Repeat("n", 256),
	strings.Repeat("n", 4096), "\xff\xfe", "new\nline"}

func (g *guest) name() string { return hostileNames[g.r.Intn(len(hostileNames))] }

func (g *guest) header() fuse.InHeader {
	h := fuse.InHeader{NodeId: g.id()}
	h.Uid, h.Gid = uint32(g.r.Intn(3)), uint32(g.r.Intn(3))
	return h
}

func (g *guest) id() uint64 {
	switch g.r.Intn(20) {
	case 0:
		return g.r.Uint64()
	case 1:
		return 0
	case 2, 3, 4, 5:
		return fs.Root
	}
	if len(g.ids) == 0 {
		return fs.Root
	}
	return g.ids[g.r.Intn(len(g.ids))]
}

func (g *guest) told(e *fuse.EntryOut, s fuse.Status) {
	if s.Ok() && e.NodeId != 0 {
		g.ids = append(g.ids, e.NodeId)
	}
}

func (g *guest) offset() uint64 {
	return []uint64{0, 1, 4095, 4096, 65536, 1 << 20, 1<<62 - 1, 1 << 62, 1<<63 - 1, 1 << 63, 1<<64 - 1, g.r.Uint64() >> g.r.Intn(64)}[g.r.Intn(12)]
}

func (g *guest) request() {
	f, h := g.f, g.header()
	buf := make([]byte, g.r.Intn(9000))
	switch g.r.Intn(26) {
	case 0, 1, 2, 3:
		var e fuse.EntryOut
		g.told(&e, f.Lookup(nil, &h, g.name(), &e))
	case 4:
		f.Forget(h.NodeId, uint64(g.r.Intn(3)))
	case 5:
		f.GetAttr(nil, &fuse.GetAttrIn{InHeader: h}, new(fuse.AttrOut))
	case 6:
		in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: g.r.Uint32() & 0x1fff, Size: g.offset() % (4 << 20),
			Mode: g.r.Uint32(), Mtime: g.offset(), Mtimensec: g.r.Uint32()}}
		in.SetAttrInCommon.Owner.Uid = uint32(g.r.Intn(5))
		f.SetAttr(nil, &in, new(fuse.AttrOut))
	case 7:
		var e fuse.EntryOut
		g.told(&e, f.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: g.r.Uint32() & 0o177777, Rdev: g.r.Uint32(), Umask: g.r.Uint32()}, g.name(), &e))
	case 8:
		var e fuse.EntryOut
		g.told(&e, f.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFREG | 0o644}, g.name(), &e))
	case 9, 10:
		var e fuse.EntryOut
		g.told(&e, f.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: g.r.Uint32()}, g.name(), &e))
	case 11:
		f.Unlink(nil, &h, g.name())
	case 12:
		f.Rmdir(nil, &h, g.name())
	case 13, 14, 15:
		f.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: g.id(), Flags: []uint32{0, 0, 1, 2, 4, 7, 1 << 20}[g.r.Intn(7)]}, g.name(), g.name())
	case 16:
		var e fuse.EntryOut
		g.told(&e, f.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: g.id()}, g.name(), &e))
	case 17:
		var e fuse.EntryOut
		g.told(&e, f.Symlink(nil, &h, []string{"", "/etc/passwd", "..", strings.Repeat("t", 5000)}[g.r.Intn(4)], g.name(), &e))
	case 18:
		f.Readlink(nil, &h)
	case 19:
		name := []string{"", "user.a", "trusted.overlay.opaque", overrideXattr, "user.msbfs.origin", xattrCaps, xattrACL, xattrDefaultACL, strings.Repeat("x", 300)}[g.r.Intn(9)]
		f.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Flags: g.r.Uint32() & 3}, name, buf)
		f.GetXAttr(nil, &h, name, buf)
		f.ListXAttr(nil, &h, buf)
		f.RemoveXAttr(nil, &h, name)
	case 20:
		f.Read(nil, &fuse.ReadIn{InHeader: h, Offset: g.offset(), Size: g.r.Uint32()}, buf)
	case 21, 22:
		f.Write(nil, &fuse.WriteIn{InHeader: h, Offset: g.offset() % (8 << 20), WriteFlags: g.r.Uint32()}, buf)
	case 23:
		f.Fallocate(nil, &fuse.FallocateIn{InHeader: h, Offset: g.offset() % (8 << 20), Length: g.offset() % (1 << 20), Mode: g.r.Uint32() & 0x7f})
		f.Lseek(nil, &fuse.LseekIn{InHeader: h, Offset: g.offset(), Whence: uint32(g.r.Intn(6))}, new(fuse.LseekOut))
		f.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: h, NodeIdOut: g.id(), OffIn: g.offset(), OffOut: g.offset() % (1 << 20), Len: g.offset() % (1 << 20)})
	case 24:
		list := fuse.NewDirEntryList(make([]byte, g.r.Intn(5000)), 0)
		in := fuse.ReadIn{InHeader: h, Offset: g.offset(), Size: g.r.Uint32()}
		if g.r.Intn(2) == 0 {
			f.ReadDir(nil, &in, list)
		} else {
			f.ReadDirPlus(nil, &in, list)
		}
	case 25:
		var out fuse.CreateOut
		g.told(&out.EntryOut, f.Tmpfile(nil, &fuse.CreateIn{InHeader: h, Mode: g.r.Uint32()}, &out))
		f.Fsync(nil, &fuse.FsyncIn{InHeader: h})
		f.FsyncDir(nil, &fuse.FsyncIn{InHeader: h})
		f.StatFs(nil, &h, new(fuse.StatfsOut))
	}
}

// TestHostileGuest checks that no requests make the server panic, hang, forget what it holds, or reach what is outside
// the upper; and that the upper they leave can be opened and walked.
func TestHostileGuest(t *testing.T) {
	for mode, o := range modes {
		t.Run(mode, func(t *testing.T) {
			outside := t.TempDir()
			upper := filepath.Join(outside, "upper")
			must(t, os.Mkdir(upper, 0o755))
			o.Bytes = 64 << 20
			for round := range int64(3) {
				f, err := New(sampleLower(), upper, o)
				must(t, err)
				var wg sync.WaitGroup
				for i := range int64(4) {
					wg.Go(func() {
						g := guest{f: f, r: rand.New(rand.NewSource(round*100 + i))}
						for range 1500 {
							g.request()
						}
					})
				}
				wg.Wait()
				f.tableMu.Lock()
				ids := make([]uint64, 0, len(f.table))
				for id := range f.table {
					ids = append(ids, id)
				}
				f.tableMu.Unlock()
				for _, id := range ids {
					f.Forget(id, 1<<60)
				}
				f.tableMu.Lock()
				if len(f.table) != 1 || f.root.kids != 0 {
					t.Errorf("%d nodes are left when all are forgotten, the root has %d", len(f.table)-1, f.root.kids)
				}
				f.tableMu.Unlock()
				must(t, f.Close())
			}
			if es, err := os.ReadDir(outside); err != nil || len(es) != 1 {
				t.Errorf("outside the upper there is %v, %v", es, err)
			}
			m := &mounted{t: t, dir: t.TempDir(), upper: upper, lower: sampleLower(), o: o}
			m.start()
			snapshot(t, m.dir)
			m.stop()
		})
	}
}

// TestDamagedUpper opens uppers whose records say anything, and walks them: errors are fine.
func TestDamagedUpper(t *testing.T) {
	values := []string{"", "y", "0:0:0755", "0:0:0755:symlink", "0:0:0755:char-1", "1:2", "-1:0:0", "99999999999:0:0", "1000001 5", "1 0", "0 0", "ffffffffff 1",
		"1000001 99999999999999", "U+5", "L-99", "U", "L999999999999", "\x00\x01"}
	names := []string{overrideXattr, "user.msbfs.origin", "user.msbfs.nlink", "trusted.overlay.opaque", "user.overlay.opaque"}
	for seed := range int64(20) {
		r := rand.New(rand.NewSource(seed))
		upper := t.TempDir()
		f, err := New(sampleLower(), upper, Options{noOwners: seed%2 == 0})
		must(t, err)
		g := guest{f: f, r: r}
		for range 300 {
			g.request()
		}
		must(t, f.Close())
		must(t, filepath.WalkDir(upper, func(p string, d os.DirEntry, err error) error {
			if err == nil && r.Intn(3) == 0 && !d.Type().IsRegular() == d.IsDir() {
				unix.Lsetxattr(p, names[r.Intn(len(names))], []byte(values[r.Intn(len(values))]), 0)
			}
			return err
		}))
		private := filepath.Join(upper, privateDir)
		must(t, os.WriteFile(filepath.Join(private, "ranges", "1000001"), []byte(values[r.Intn(len(values))]), 0o600))
		must(t, os.WriteFile(filepath.Join(private, "index", "zz"), nil, 0o600))
		f, err = New(sampleLower(), upper, Options{noOwners: seed%3 == 0, Bytes: 1 << 20})
		if err != nil {
			continue
		}
		g = guest{f: f, r: r}
		for range 1000 {
			g.request()
		}
		for range f.Diff(t.Context()) {
		}
		must(t, f.Close())
	}
}

func FuzzRecords(f *testing.F) {
	f.Add("1:2:0755:char-1-3")
	f.Add("1000001 5")
	f.Add("U+5")
	f.Fuzz(func(t *testing.T, s string) {
		for _, host := range []uint32{unix.S_IFREG | 0o600, unix.S_IFDIR | 0o700} {
			if o, err := parseOverride(s, host); err == nil {
				again, err := parseOverride(o.format(host), host)
				if err != nil || *again != *o {
					t.Errorf("%q is %+v, written and read again %+v, %v", s, o, again, err)
				}
			}
		}
		if id, base, err := parseOrigin(s); err == nil {
			if a, b, err := parseOrigin(formatOrigin(id, base)); a != id || b != base || err != nil {
				t.Errorf("%q is %d %d, then %d %d %v", s, id, base, a, b, err)
			}
		}
		if l, err := parseLinks(s); err == nil {
			if again, err := parseLinks(l.format()); err != nil || *again != *l {
				t.Errorf("%q is %+v, then %+v %v", s, l, again, err)
			}
		}
		if a, err := parseACL([]byte(s)); err == nil && a.mode() > 0o777 {
			t.Errorf("mode %o", a.mode())
		}
		parseUmask([]byte(s))
	})
}

// TestForgottenIsGone makes many files as a guest that never stops does: what the kernel forgets takes no memory.
func TestForgottenIsGone(t *testing.T) {
	f, err := New(sampleLower(), t.TempDir(), Options{})
	must(t, err)
	defer func() { must(t, f.Close()) }()
	var tmp fuse.EntryOut
	if s := f.Lookup(nil, &fuse.InHeader{NodeId: fs.Root}, "tmp", &tmp); !s.Ok() {
		t.Fatal(s)
	}
	for i := range 5000 {
		in := fuse.MknodIn{InHeader: fuse.InHeader{NodeId: tmp.NodeId}, Mode: unix.S_IFREG | 0o644}
		var out fuse.EntryOut
		if s := f.Mknod(nil, &in, fmt.Sprint(i), &out); !s.Ok() {
			t.Fatal(s)
		}
		if s := f.Link(nil, &fuse.LinkIn{InHeader: in.InHeader, Oldnodeid: out.NodeId}, fmt.Sprint(i, "b"), &out); !s.Ok() {
			t.Fatal(s)
		}
		if i%2 == 0 {
			if s := f.Unlink(nil, &in.InHeader, fmt.Sprint(i)); !s.Ok() {
				t.Fatal(s)
			}
		}
		f.Forget(out.NodeId, 2)
	}
	if n := len(f.table); n != 2 { // the root and tmp
		t.Errorf("%d nodes are known after all was forgotten", n)
	}
	if n := f.handles.idle.Len(); n > maxHandles {
		t.Errorf("%d files are open", n)
	}
}

// FuzzUpper opens an upper whose records, map and identity say anything, walks it, writes to it and exports it: no panic, no
// hang, nothing out of bounds.
func FuzzUpper(f *testing.F) {
	f.Add("1000001 1048699", "U+5", "1:2:0755:char-1-3", []byte(mapMagic+"\xff\x01"), []byte(`{"version":1,"lower":"","whiteouts":"both"}`), []byte("y"))
	f.Add("1000010 99999999999999999", "L-3", "0:0:04755:symlink", []byte(mapMagic), []byte(`{"version":1}`), []byte("bytes"))
	f.Add("ffffffff 1", "", "0:0:0:pipe", []byte{}, []byte(`{"bytes":-1,"inodes":-99}`), []byte("{}"))
	lower := sampleLower()
	big, _, err := lower.Lookup(f.Context(), fs.Root, "big")
	must(f, err)
	f.Fuzz(func(t *testing.T, origin, nlink, over string, ranges, format, usage []byte) {
		upper := t.TempDir()
		private := filepath.Join(upper, privateDir)
		for _, dir := range []string{"ranges", "index"} {
			must(t, os.MkdirAll(filepath.Join(private, dir), 0o700))
		}
		for _, name := range []string{"big", "file", "etc/passwd", "opt/link", "etc/.wh.shadow"} {
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(upper, name)), 0o755))
			must(t, os.WriteFile(filepath.Join(upper, name), ranges, 0o644))
		}
		must(t, os.Link(filepath.Join(upper, "file"), filepath.Join(private, "index", privateName(big))))
		must(t, os.WriteFile(filepath.Join(private, "ranges", privateName(big)), ranges, 0o600))
		must(t, os.WriteFile(filepath.Join(private, "format.json"), format, 0o600))
		must(t, os.WriteFile(filepath.Join(private, usageFile), usage, 0o600))
		for name, attrs := range map[string]map[string]string{
			"big":        {"user.msbfs.origin": fmt.Sprintf("%x 1048699", big), overrideXattr: over},
			"file":       {"user.msbfs.origin": origin, "user.msbfs.nlink": nlink},
			"etc":        {"user.msbfs.origin": origin, overrideXattr: over},
			"opt":        {"user.overlay.opaque": string(usage), overrideXattr: over},
			"opt/link":   {overrideXattr: over + ":symlink", "user.msbfs.nlink": nlink},
			"etc/passwd": {overrideXattr: over, "user.msbfs." + guestPrefix + xattrACL: origin, "user.msbfs." + guestPrefix + xattrCaps: nlink},
		} {
			for attr, v := range attrs {
				must(t, unix.Lsetxattr(filepath.Join(upper, name), attr, []byte(v), 0))
			}
		}
		c, err := New(lower, upper, Options{Bytes: 1 << 24})
		if err != nil {
			return
		}
		g := guest{f: c, r: rand.New(rand.NewSource(int64(len(origin) + len(ranges))))}
		for range 60 {
			g.request()
		}
		if err := c.ExportLayer(t.Context(), io.Discard); err == nil {
			for range c.Diff(t.Context()) {
			}
		}
		must(t, c.Close())
	})
}

// TestHostileUpper opens uppers that somebody made to lead the server astray: outside, in circles, or to a wait without an
// end.
func TestHostileUpper(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	must(t, os.WriteFile(secret, []byte("outside"), 0o600))
	lower := sampleLower()
	id := func(path string) uint64 {
		at := fs.Root
		for _, name := range strings.Split(path, "/") {
			at, _, _ = lower.Lookup(t.Context(), at, name)
		}
		return at
	}
	origin := func(path string, of uint64, base int64) func(u string) error {
		return func(u string) error {
			return unix.Lsetxattr(filepath.Join(u, path), "user.msbfs.origin", []byte(formatOrigin(of, base)), 0)
		}
	}
	private := func(path string) string { return filepath.Join(privateDir, path) }
	mapOf := private("ranges/" + privateName(id("big")))
	tests := map[string][]func(u string) error{
		"private directory is a link": {func(u string) error { os.RemoveAll(u + "/" + privateDir); return os.Symlink(outside, u+"/"+privateDir) }},
		"ranges is a link": {func(u string) error {
			os.RemoveAll(u + "/" + private("ranges"))
			return os.Symlink(outside, u+"/"+private("ranges"))
		}},
		"work is a link": {func(u string) error {
			os.RemoveAll(u + "/" + private("work"))
			return os.Symlink(outside, u+"/"+private("work"))
		}},
		"work holds a link and a tree": {func(u string) error { return os.Symlink(outside, u+"/"+private("work/x")) }, func(u string) error { return os.MkdirAll(u+"/"+private("orphans/a/b/c/d"), 0) }},
		"identity is a link": {func(u string) error {
			os.Remove(u + "/" + private("format.json"))
			return os.Symlink(secret, u+"/"+private("format.json"))
		}},
		"identity is a fifo": {func(u string) error {
			os.Remove(u + "/" + private("format.json"))
			return unix.Mkfifo(u+"/"+private("format.json"), 0o600)
		}},
		"identity is endless": {func(u string) error { return os.Truncate(u+"/"+private("format.json"), 1<<40) }},
		"usage is a fifo": {func(u string) error {
			os.Remove(u + "/" + private(usageFile))
			return unix.Mkfifo(u+"/"+private(usageFile), 0o600)
		}},
		"map is a link":      {func(u string) error { os.Remove(u + "/" + mapOf); return os.Symlink(secret, u+"/"+mapOf) }},
		"map is a fifo":      {func(u string) error { os.Remove(u + "/" + mapOf); return unix.Mkfifo(u+"/"+mapOf, 0o600) }},
		"map is a directory": {func(u string) error { os.Remove(u + "/" + mapOf); return os.Mkdir(u+"/"+mapOf, 0o700) }},
		"map owns all and more": {func(u string) error {
			return os.WriteFile(u+"/"+mapOf, []byte(mapMagic+strings.Repeat("\xff", 1<<16)), 0o600)
		}},
		"map is of something else":            {func(u string) error { return os.WriteFile(u+"/"+mapOf, []byte("what is this?"), 0o600) }},
		"map is the file's other name":        {func(u string) error { os.Remove(u + "/" + mapOf); return os.Link(u+"/big", u+"/"+mapOf) }},
		"file claims more than there is":      {origin("big", id("big"), 1<<62)},
		"file was copied up from a directory": {origin("big", id("opt"), 1<<20)},
		"file was copied up from nothing":     {origin("big", 12345, 1<<20)},
		"directory was copied up from a file": {func(u string) error { return os.Mkdir(u+"/new", 0o755) }, origin("new", id("big"), 0)},
		"directories show each other":         {func(u string) error { return os.MkdirAll(u+"/x/y", 0o755) }, origin("x", id("opt"), 0), origin("x/y", id("opt"), 0)},
		"directory shows the root":            {func(u string) error { return os.MkdirAll(u+"/x/x", 0o755) }, origin("x", fs.Root, 0), origin("x/x", fs.Root, 0)},
		"directory shows its parent":          {func(u string) error { return os.MkdirAll(u+"/opt/app", 0o755) }, origin("opt/app", id("opt"), 0), origin("opt", id("opt"), 0)},
		"file is a link outside":              {func(u string) error { return os.Symlink(secret, u+"/etc/link") }},
		"directory is a link outside":         {func(u string) error { return os.Symlink(outside, u+"/out") }},
		"file is a fifo of the host's":        {func(u string) error { os.Remove(u + "/big"); return unix.Mkfifo(u+"/big", 0o600) }},
		"file is a device of the host's": {func(u string) error {
			os.Remove(u + "/big")
			return unix.Mknod(u+"/big", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))
		}},
		"index leads outside":   {func(u string) error { return os.Symlink(secret, u+"/"+private("index/"+privateName(id("bin/ls")))) }},
		"index has a fifo":      {func(u string) error { return unix.Mkfifo(u+"/"+private("index/"+privateName(id("bin/ls"))), 0o600) }},
		"link count below none": {func(u string) error { return unix.Lsetxattr(u+"/big", "user.msbfs.nlink", []byte("L-2147483648"), 0) }},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			upper := t.TempDir()
			f, err := New(lower, upper, Options{})
			must(t, err)
			var big, etc fuse.EntryOut
			f.Lookup(nil, &fuse.InHeader{NodeId: fs.Root}, "big", &big)
			f.Write(nil, &fuse.WriteIn{InHeader: fuse.InHeader{NodeId: big.NodeId}, Offset: 70000}, []byte("written"))
			f.Lookup(nil, &fuse.InHeader{NodeId: fs.Root}, "etc", &etc)
			f.Unlink(nil, &fuse.InHeader{NodeId: etc.NodeId}, "shadow")
			must(t, f.Close())
			for _, step := range steps {
				if err := step(upper); err != nil {
					if os.Geteuid() != 0 && errors.Is(err, unix.EPERM) {
						t.Skip("making devices needs root")
					}
					t.Fatal(err)
				}
			}
			f, err = New(lower, upper, Options{Bytes: 1 << 30})
			if err == nil {
				w := walker{f: f, left: 2000}
				w.walk(fs.Root)
				for range f.Diff(t.Context()) {
				}
				f.ExportLayer(t.Context(), io.Discard)
				must(t, f.Close())
				if w.left == 0 {
					t.Error("the tree has no end")
				}
				if strings.Contains(w.seen.String(), "outside") {
					t.Error("what is outside was read")
				}
			}
			if es, err := os.ReadDir(outside); err != nil || len(es) != 1 {
				t.Fatalf("outside there is %v, %v", es, err)
			}
			wantFile(t, secret, "outside")
		})
	}
}

// walker visits, reads and writes all of a tree, as far as it lets it.
type walker struct {
	f    *FS
	left int // entries that it still looks at
	seen strings.Builder
}

func (w *walker) walk(dir uint64) {
	n, err := w.f.node(dir)
	if err != nil {
		return
	}
	names, _ := (&differ{f: w.f, ctx: context.Background()}).names(n, n.lower)
	w.f.lower.ReadDir(context.Background(), n.lower, 0, func(name string, _ uint64, _ fs.Attr) bool {
		names = append(names, name)
		return true
	})
	for _, name := range names {
		if w.left == 0 {
			return
		}
		w.left--
		h := fuse.InHeader{NodeId: dir}
		var e fuse.EntryOut
		if s := w.f.Lookup(nil, &h, name, &e); !s.Ok() || e.NodeId == 0 {
			continue
		}
		h.NodeId = e.NodeId
		buf := make([]byte, 4096)
		switch e.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			w.walk(e.NodeId)
		case unix.S_IFREG:
			for _, off := range []uint64{0, 69632, 1 << 20} {
				if r, s := w.f.Read(nil, &fuse.ReadIn{InHeader: h, Offset: off, Size: uint32(len(buf))}, buf); s.Ok() {
					b, _ := r.Bytes(nil)
					w.seen.Write(b)
				}
			}
			w.f.Write(nil, &fuse.WriteIn{InHeader: h, Offset: 5000}, []byte("x"))
			w.f.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_SIZE, Size: 9999}}, new(fuse.AttrOut))
			w.f.Fsync(nil, &fuse.FsyncIn{InHeader: h})
		}
		w.f.ListXAttr(nil, &h, buf)
		w.f.Rename(nil, &fuse.RenameIn{InHeader: fuse.InHeader{NodeId: dir}, Newdir: dir}, name, name+"2")
	}
}
