package cow

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// For hours by hand: go test ./cow -run TestFsx -fsx.ops=10000000 -fsx.seed=$RANDOM
var (
	fsxOps  = flag.Int("fsx.ops", 1500, "operations of TestFsx in each mode")
	fsxSeed = flag.Int64("fsx.seed", 1, "seed of TestFsx")
)

// fsx does random things to one file of the lower and to a slice of bytes, and compares them.
type fsx struct {
	t     *testing.T
	path  string  // of the file
	m     *served // nil where there is nothing that may be killed
	r     *rand.Rand
	f     *os.File
	model []byte
	log   []string
}

const fsxMax = 1<<20 + 300<<10

func (x *fsx) open() {
	var err error
	x.f, err = os.OpenFile(x.path, os.O_RDWR, 0)
	must(x.t, err)
}

func (x *fsx) note(format string, args ...any) {
	x.log = append(x.log, fmt.Sprintf(format, args...))
	if len(x.log) > 30 {
		x.log = x.log[1:]
	}
}

func (x *fsx) fatal(format string, args ...any) {
	x.t.Helper()
	for _, l := range x.log {
		x.t.Log(l)
	}
	x.t.Fatalf(format, args...)
}

func (x *fsx) check(err error) {
	x.t.Helper()
	if err != nil {
		x.fatal("%v", err)
	}
}

// span is a place and length within max.
func (x *fsx) span(max int) (off, n int) {
	if max <= 0 {
		return 0, 0
	}
	off = x.r.Intn(max)
	if x.r.Intn(3) == 0 {
		off = off / 4096 * 4096
	}
	n = 1 + x.r.Intn(min(max-off, 1<<uint(1+x.r.Intn(17))))
	if x.r.Intn(3) == 0 && n > 4096 {
		n = n / 4096 * 4096
	}
	return off, n
}

func (x *fsx) grow(size int) {
	if size > len(x.model) {
		x.model = append(x.model, make([]byte, size-len(x.model))...)
	}
}

func (x *fsx) random(n int) []byte {
	b := make([]byte, n)
	x.r.Read(b)
	return b
}

func (x *fsx) step() {
	fd := int(x.f.Fd())
	switch x.r.Intn(13) {
	case 0, 1, 2:
		off, n := x.span(fsxMax)
		x.note("write %d +%d of %d", off, n, len(x.model))
		b := x.random(n)
		_, err := x.f.WriteAt(b, int64(off))
		x.check(err)
		x.grow(off + n)
		copy(x.model[off:], b)
	case 3, 4:
		off, n := x.span(len(x.model))
		x.note("read %d +%d of %d", off, n, len(x.model))
		got := make([]byte, n)
		if n > 0 {
			_, err := x.f.ReadAt(got, int64(off))
			x.check(err)
		}
		if !bytes.Equal(got, x.model[off:off+n]) {
			x.fatal("read %d +%d differs at %d", off, n, off+firstDiff(got, x.model[off:]))
		}
	case 5:
		size := x.r.Intn(fsxMax)
		if x.r.Intn(3) > 0 {
			size = len(x.model) - len(x.model)/8 + x.r.Intn(1+len(x.model)/4)
		}
		x.note("truncate %d of %d", size, len(x.model))
		x.check(x.f.Truncate(int64(size)))
		x.grow(size)
		x.model = x.model[:size:size]
	case 6:
		off, n := x.span(fsxMax)
		x.note("punch %d +%d of %d", off, n, len(x.model))
		x.check(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)))
		if off < len(x.model) {
			clear(x.model[off:min(off+n, len(x.model))])
		}
	case 7:
		off, n := x.span(fsxMax)
		x.note("zero %d +%d of %d", off, n, len(x.model))
		x.check(unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, int64(off), int64(n)))
		x.grow(off + n)
		clear(x.model[off : off+n])
	case 8:
		off, n := x.span(fsxMax)
		x.note("allocate %d +%d of %d", off, n, len(x.model))
		x.check(unix.Fallocate(fd, 0, int64(off), int64(n)))
		x.grow(off + n)
	case 9:
		off, n := x.span(len(x.model))
		if n == 0 {
			return
		}
		x.note("mmap %d +%d of %d", off, n, len(x.model))
		page := off / 4096 * 4096
		mem, err := unix.Mmap(fd, int64(page), n+off-page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		x.check(err)
		if !bytes.Equal(mem[off-page:], x.model[off:off+n]) {
			x.fatal("mapped %d +%d differs at %d", off, n, off+firstDiff(mem[off-page:], x.model[off:]))
		}
		copy(mem[off-page:], x.random(n))
		copy(x.model[off:], mem[off-page:])
		x.check(unix.Munmap(mem))
	case 10:
		from, n := x.span(len(x.model))
		to, _ := x.span(fsxMax - n)
		if n == 0 || from < to+n && to < from+n {
			return
		}
		x.note("copy %d +%d to %d of %d", from, n, to, len(x.model))
		in, out := int64(from), int64(to)
		got, err := unix.CopyFileRange(fd, &in, fd, &out, n, 0)
		x.check(err)
		x.grow(to + got)
		copy(x.model[to:], x.model[from:from+got])
	case 11:
		x.check(x.f.Sync())
		off, _ := x.span(len(x.model))
		data, err := unix.Seek(fd, int64(off), unix.SEEK_DATA)
		x.note("seek data %d of %d: %d %v", off, len(x.model), data, err)
		end := min(int(data), len(x.model))
		if err == unix.ENXIO {
			end = len(x.model)
		}
		if i := bytes.IndexFunc(x.model[min(off, end):end], func(r rune) bool { return r != 0 }); i >= 0 {
			x.fatal("a hole is said to be at %d, there is data at %d", off, off+i)
		}
	case 12:
		if x.m == nil || x.r.Intn(10) > 0 {
			return
		}
		x.note("kill")
		x.check(x.f.Close()) // which brings mapped pages to the server
		x.m.kill()
		x.m.start()
		x.open()
	}
}

func firstDiff(a, b []byte) int {
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func TestFsx(t *testing.T) {
	for mode := range modes {
		t.Run(mode, func(t *testing.T) {
			l := sampleLower()
			id, _, _ := l.Lookup(t.Context(), 1, "big")
			m := serveProcess(t, mode, 0) // a page fault in the server's own process could wait for itself
			x := &fsx{t: t, path: m.dir + "/big", m: m, r: rand.New(rand.NewSource(*fsxSeed)), model: bytes.Clone(l.files[id].data)}
			x.open()
			defer func() { x.f.Close() }()
			for i := range *fsxOps {
				x.step()
				if i%400 == 399 { // from the beginning: most steps leave nothing of the lower
					must(t, x.f.Close())
					got, err := os.ReadFile(m.dir + "/big")
					must(t, err)
					if !bytes.Equal(got, x.model) {
						x.fatal("the file differs from byte %d of %d on", firstDiff(got, x.model), len(x.model))
					}
					m.kill()
					m.upper = t.TempDir()
					m.start()
					x.model = bytes.Clone(l.files[id].data)
					x.open()
				}
			}
		})
	}
}
