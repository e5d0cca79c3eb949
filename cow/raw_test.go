package cow

import (
	"fmt"
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
