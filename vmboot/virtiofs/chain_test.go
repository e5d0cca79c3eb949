package virtiofs

import (
	"errors"
	"math"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// guestMemory is a table with two neighbouring regions at 1 MiB and one far away, 64 KiB each.
func guestMemory(t testing.TB) *memory {
	t.Helper()
	const size = 64 << 10
	fd := sealedFile(t, 3*size)
	defer unix.Close(fd)
	var regions []region
	for i, guest := range []uint64{1 << 20, 1<<20 + size, 1 << 40} {
		r, err := mapRegion(guest, size, guest+1<<45, uint64(i)*size, fd)
		if err != nil {
			t.Fatal(err)
		}
		regions = append(regions, r)
	}
	m, err := newMemory(regions)
	releaseRegions(regions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.release)
	return m
}

func sealedFile(t testing.TB, size int64) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestChain(t *testing.T) {
	const (
		low     = 1 << 20
		far     = 1 << 40
		size    = 64 << 10
		table   = low + 0x8000 // where the indirect table is
		N       = descNext
		W       = descWrite
		I       = descIndirect
		queue   = 8
		nowhere = 1 << 30
	)
	type d = descriptor
	for _, c := range []struct {
		name     string
		desc     []d // of the queue
		indirect []d // at table
		head     uint16
		in, out  []int // lengths of the slices
		err      string
	}{
		{name: "one", desc: []d{{low, 10, 0, 0}}, in: []int{10}},
		{name: "in and out", desc: []d{{low, 10, N, 2}, {}, {far, 20, W, 0}}, in: []int{10}, out: []int{20}},
		{name: "head in the middle", head: 3, desc: []d{3: {low, 10, 0, 9}}, in: []int{10}},
		{name: "neighbours become one", desc: []d{{low, 4096, N, 1}, {low + 4096, 4096, N, 2}, {far, 8, W | N, 3}, {far + 8, 8, W | N, 4}, {far + 17, 8, W, 0}}, in: []int{8192}, out: []int{16, 8}},
		{name: "across two regions", desc: []d{{low + size - 16, 32, W, 0}}, out: []int{16, 16}},
		{name: "neighbours in two regions stay two", desc: []d{{low + size - 16, 16, N, 1}, {low + size, 16, 0, 0}}, in: []int{16, 16}},
		{name: "empty buffers", desc: []d{{0, 0, N, 1}, {low, 1, N, 2}, {far, 0, W, 0}}, in: []int{1}},
		{name: "whole region", desc: []d{{far, size, 0, 0}}, in: []int{size}},
		{name: "indirect", desc: []d{{table, 32, I, 0}}, indirect: []d{{low, 10, N, 1}, {far, 20, W, 0}}, in: []int{10}, out: []int{20}},
		{name: "indirect out of order", desc: []d{{table, 48, I, 0}}, indirect: []d{{low, 10, N, 2}, {far, 20, W, 0}, {far, 5, N, 1}}, in: []int{10, 5}, out: []int{20}},
		{name: "indirect after direct", desc: []d{{low, 10, N, 1}, {table, 16, I, 0}}, indirect: []d{{far, 20, W, 0}}, in: []int{10}, out: []int{20}},
		{name: "write flag of an indirect descriptor means nothing", desc: []d{{table, 16, I | W, 0}}, indirect: []d{{far, 20, 0, 0}}, in: []int{20}},

		{name: "loop", desc: []d{{low, 1, N, 1}, {low, 1, N, 0}}, err: "more than 8"},
		{name: "loop of itself", desc: []d{{low, 1, N, 0}}, err: "more than 8"},
		{name: "loop in indirect", desc: []d{{table, 16, I, 0}}, indirect: []d{{low, 1, N, 0}}, err: "more than 8"},
		{name: "indirect longer than the queue", desc: []d{{table, 9 * 16, I, 0}}, indirect: []d{{low, 1, N, 1}, {low, 1, N, 2}, {low, 1, N, 3}, {low, 1, N, 4}, {low, 1, N, 5}, {low, 1, N, 6}, {low, 1, N, 7}, {low, 1, N, 8}, {low, 1, 0, 0}}, err: "more than 8"},
		{name: "next outside", desc: []d{{low, 1, N, queue}}, err: "descriptor 8 of 8"},
		{name: "next outside of indirect", desc: []d{{table, 16, I, 0}}, indirect: []d{{low, 1, N, 1}}, err: "descriptor 1 of 1"},
		{name: "address 0", desc: []d{{0, 1, 0, 0}}, err: "not guest memory"},
		{name: "before a region", desc: []d{{low - 1, 2, 0, 0}}, err: "not guest memory"},
		{name: "beyond the last region", desc: []d{{far + size - 1, 2, W, 0}}, err: "not guest memory"},
		{name: "end of the address space", desc: []d{{math.MaxUint64 - 1, 16, W, 0}}, err: "not guest memory"},
		{name: "wraps around", desc: []d{{math.MaxUint64, math.MaxUint32, W, 0}}, err: "writable bytes"},
		{name: "giant", desc: []d{{low, math.MaxUint32, 0, 0}}, err: "readable bytes"},
		{name: "readable after writable", desc: []d{{low, 1, W | N, 1}, {low, 1, 0, 0}}, err: "readable buffer after"},
		{name: "readable after empty writable", desc: []d{{low, 0, W | N, 1}, {low, 1, 0, 0}}, err: "readable buffer after"},
		{name: "indirect with successor", desc: []d{{table, 16, I | N, 1}, {low, 1, 0, 0}}, indirect: []d{{low, 1, 0, 0}}, err: "successor"},
		{name: "indirect in indirect", desc: []d{{table, 16, I, 0}}, indirect: []d{{table, 16, I, 0}}, err: "in an indirect"},
		{name: "indirect in indirect, later", desc: []d{{table, 32, I, 0}}, indirect: []d{{low, 1, N, 1}, {table, 16, I, 0}}, err: "in an indirect"},
		{name: "indirect, empty", desc: []d{{table, 0, I, 0}}, err: "0 bytes"},
		{name: "indirect, odd", desc: []d{{table, 24, I, 0}}, err: "24 bytes"},
		{name: "indirect, giant", desc: []d{{table, math.MaxUint32 &^ 15, I, 0}}, err: "4294967280 bytes"},
		{name: "indirect, outside", desc: []d{{nowhere, 16, I, 0}}, err: "not guest memory"},
		{name: "indirect, over the end", desc: []d{{far + size - 16, 32, I, 0}}, err: "crosses the end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := guestMemory(t)
			desc := make([]byte, queue*descSize)
			for i, d := range c.desc {
				putDesc(desc[16*i:], d.addr, int(d.len), int(d.flags), int(d.next))
			}
			for i, d := range c.indirect {
				putDesc(m.regions[0].data[0x8000+16*i:], d.addr, int(d.len), int(d.flags), int(d.next))
			}
			ch := chain{in: [][]byte{nil}, out: [][]byte{nil}, writable: true} // of an earlier request
			err := ch.read(m, desc, c.head, queue)
			if c.err != "" {
				if !errors.Is(err, errBadChain) || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want one that says %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			check := func(what string, got [][]byte, total int, want []int) {
				sum := 0
				if len(got) != len(want) {
					t.Fatalf("%s: %d slices, want %d", what, len(got), len(want))
				}
				for i := range got {
					if len(got[i]) != want[i] {
						t.Errorf("%s: slice %d of %d bytes, want %d", what, i, len(got[i]), want[i])
					}
					sum += len(got[i])
				}
				if total != sum {
					t.Errorf("%s: %d bytes in all, want %d", what, total, sum)
				}
			}
			check("in", ch.in, ch.inLen, c.in)
			check("out", ch.out, ch.outLen, c.out)
		})
	}
}

func TestMapRegion(t *testing.T) {
	const size = 1 << 20
	sealed := sealedFile(t, size)
	defer unix.Close(sealed)
	plain, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(plain)
	if err := unix.Ftruncate(plain, size); err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	for _, c := range []struct {
		name                      string
		guest, size, user, offset uint64
		fd                        int
		err                       string
	}{
		{"whole", 0, size, 0, 0, sealed, ""},
		{"odd page", 4096, 4096, 0, 12288, sealed, ""},
		{"inside a page", 4096, 4096, 0, 512, sealed, ""},
		{"empty", 0, 0, 0, 0, sealed, "impossible"},
		{"odd size", 0, 1001, 0, 0, sealed, "impossible"},
		{"odd offset", 0, 4096, 0, 1001, sealed, "odd offset"},
		{"beyond the file", 0, size, 0, 4096, sealed, "in a file of"},
		{"giant", 0, math.MaxUint64 &^ 7, 0, 0, sealed, "impossible"},
		{"giant offset", 0, 4096, 0, math.MaxUint64 - 4095, sealed, "impossible"},
		{"guest address wraps", math.MaxUint64 - 100, 4096, 0, 0, sealed, "impossible"},
		{"user address wraps", 0, 4096, math.MaxUint64 - 100, 0, sealed, "impossible"},
		{"not sealed", 0, size, 0, 0, plain, "not sealed"},
		{"no memory", 0, 8, 0, 0, dir, "guest memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := mapRegion(c.guest, c.size, c.user, c.offset, c.fd)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want one that says %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.m.release()
			want := byte(c.offset>>8) | 1
			if _, err := unix.Pwrite(c.fd, []byte{want}, int64(c.offset)); err != nil {
				t.Fatal(err)
			}
			if len(r.data) != int(c.size) || r.data[0] != want {
				t.Errorf("%d bytes that begin with %d", len(r.data), r.data[0])
			}
		})
	}
}

func TestMemoryOverlap(t *testing.T) {
	fd := sealedFile(t, 1<<20)
	defer unix.Close(fd)
	for _, c := range []struct {
		a, b uint64
		ok   bool
	}{
		{0, 4096, true}, {4096, 0, true}, {0, 4095 &^ 7, false}, {8192, 8192, false}, {8192, 8184, false},
	} {
		var regions []region
		for i, guest := range []uint64{c.a, c.b} {
			r, err := mapRegion(guest, 4096, uint64(i)<<20, 0, fd)
			if err != nil {
				t.Fatal(err)
			}
			regions = append(regions, r)
		}
		m, err := newMemory(regions)
		releaseRegions(regions)
		if (err == nil) != c.ok {
			t.Errorf("regions at %#x and %#x: %v", c.a, c.b, err)
		}
		if m != nil {
			m.release()
		}
	}
}
