//go:build !race

// Under the race detector sync.Pool drops what it is given at random, which is an allocation.

package fs

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// hot are the requests that a warm mount answers most.
func hot(tb testing.TB) map[string]func() fuse.Status {
	var items []item
	for i := range 200 {
		items = append(items, file(fmt.Sprintf("d/file%03d", i), strings.Repeat("x", 9000)).xattr("user.a", "b"))
	}
	tree := sealedTree(tb, Options{}, newLayer(items...))
	raw := Raw(tree)
	cancel := make(chan struct{})
	var entry fuse.EntryOut
	if st := raw.Lookup(cancel, &fuse.InHeader{NodeId: Root}, "d", &entry); !st.Ok() {
		tb.Fatal(st)
	}
	d := entry.NodeId
	if st := raw.Lookup(cancel, &fuse.InHeader{NodeId: d}, "file100", &entry); !st.Ok() {
		tb.Fatal(st)
	}
	f := entry.NodeId
	in, attrIn, attr := &fuse.InHeader{NodeId: d}, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: f}}, new(fuse.AttrOut)
	readIn := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: f}, Size: 4096, Offset: 4096}
	dirIn := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: d}}
	buf, dirBuf, value := make([]byte, 4096), make([]byte, 16384), make([]byte, 64)
	list := fuse.NewDirEntryList(dirBuf, 0)
	empty := *list
	return map[string]func() fuse.Status{
		"Lookup":  func() fuse.Status { return raw.Lookup(cancel, in, "file150", &entry) },
		"Absent":  func() fuse.Status { return raw.Lookup(cancel, in, "nothing", &entry) },
		"Getattr": func() fuse.Status { return raw.GetAttr(cancel, attrIn, attr) },
		"Read": func() fuse.Status {
			r, st := raw.Read(cancel, readIn, buf)
			if st.Ok() {
				r.Done()
			}
			return st
		},
		"Readdirplus": func() fuse.Status { *list = empty; return raw.ReadDirPlus(cancel, dirIn, list) },
		"Readdir":     func() fuse.Status { *list = empty; return raw.ReadDir(cancel, dirIn, list) },
		"Getxattr": func() fuse.Status {
			_, st := raw.GetXAttr(cancel, &attrIn.InHeader, "user.a", value)
			return st
		},
	}
}

func TestHotRequestsAllocateNothing(t *testing.T) {
	for name, f := range hot(t) {
		if st := f(); !st.Ok() {
			t.Errorf("%s: %v", name, st)
		}
		if n := testing.AllocsPerRun(100, func() { f() }); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkHot(b *testing.B) {
	for name, f := range hot(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}
