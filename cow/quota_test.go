package cow

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func wantErrno(t *testing.T, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func used(m *mounted) (bytes, inodes int64) {
	m.fs.quota.mu.Lock()
	defer m.fs.quota.mu.Unlock()
	return m.fs.quota.used.Bytes, m.fs.quota.used.Inodes
}

func TestQuotaBytes(t *testing.T) {
	m := mount(t, sampleLower(), Options{Bytes: 1 << 20})
	must(t, os.WriteFile(m.path("tmp/a"), make([]byte, 900<<10), 0o644))
	wantErrno(t, os.WriteFile(m.path("tmp/b"), make([]byte, 200<<10), 0o644), unix.ENOSPC)
	// What is allocated may be written again.
	f, err := os.OpenFile(m.path("tmp/a"), os.O_WRONLY, 0)
	must(t, err)
	if _, err := f.WriteAt(make([]byte, 500<<10), 4096); err != nil {
		t.Error(err)
	}
	must(t, f.Close())
	var st unix.Statfs_t
	must(t, unix.Statfs(m.dir, &st))
	if st.Blocks*uint64(st.Bsize) > 1<<20 {
		t.Errorf("statfs says %d bytes, the limit is 1 MiB", st.Blocks*uint64(st.Bsize))
	}
	before, _ := used(m)
	m.remount()
	if after, _ := used(m); after != before {
		t.Errorf("%d bytes used after remounting, %d before", after, before)
	}
	must(t, os.Remove(m.path("tmp/b")))
	must(t, os.Remove(m.path("tmp/a")))
	must(t, os.WriteFile(m.path("tmp/b"), make([]byte, 900<<10), 0o644))
	must(t, os.Truncate(m.path("tmp/b"), 0))
	must(t, os.WriteFile(m.path("tmp/c"), make([]byte, 900<<10), 0o644))

	// Writing to a file of the lower counts what it takes.
	big, err := os.OpenFile(m.path("big"), os.O_WRONLY, 0)
	must(t, err)
	defer big.Close()
	if _, err := big.WriteAt([]byte("x"), 500000); err != nil {
		t.Error(err)
	}
	_, err = big.WriteAt(make([]byte, 512<<10), 0)
	wantErrno(t, err, unix.ENOSPC)
}

// Making and removing things does not make room.
func TestQuotaDoesNotDrift(t *testing.T) {
	for mode, o := range modes {
		t.Run(mode, func(t *testing.T) {
			o.Bytes = 64 << 20
			m := mount(t, sampleLower(), o)
			must(t, os.WriteFile(m.path("tmp/keep"), make([]byte, 100<<10), 0o644))
			bytes, inodes := used(m)
			for i := range 20 {
				name := m.path(fmt.Sprintf("tmp/%d", i))
				must(t, os.Symlink(string(make([]byte, 0, 100))+name+name, name))
				must(t, os.Remove(name))
				must(t, os.WriteFile(name, make([]byte, 5000), 0o644))
				must(t, unix.Setxattr(name, "user.big", make([]byte, 3000), 0))
				must(t, os.Link(name, name+"l"))
				must(t, os.Rename(name, name+"r"))
				must(t, os.Remove(name+"l"))
				must(t, os.Mkdir(name, 0o755))
				must(t, os.WriteFile(name+"/f", make([]byte, 5000), 0o644))
				must(t, os.Rename(name+"/f", name+"r"))
				must(t, os.Remove(name))
				must(t, os.Remove(name+"r"))
			}
			m.remount()
			b, i := used(m)
			if b != bytes || i != inodes {
				t.Errorf("%d bytes and %d inodes used, want %d and %d", b, i, bytes, inodes)
			}
			c, err := m.fs.upper.count()
			must(t, err)
			if c.Inodes != i || c.Bytes < b {
				t.Errorf("counted %+v, kept %d bytes and %d inodes", c, b, i)
			}
		})
	}
}

func TestQuotaInodes(t *testing.T) {
	m := mount(t, sampleLower(), Options{Inodes: 10})
	var err error
	n := 0
	for ; err == nil && n < 20; n++ {
		err = os.Mkdir(m.path(fmt.Sprintf("tmp/%d", n)), 0o755)
	}
	wantErrno(t, err, unix.ENOSPC)
	if n != 10 { // tmp itself is copied up for them
		t.Errorf("the %dth creation failed", n)
	}
	must(t, os.Remove(m.path("opt/app/lib/a.py"))) // deleting is possible, whatever has to be copied up for it
	for i := range 4 {                             // opt, app and lib count as well
		must(t, os.Remove(m.path(fmt.Sprintf("tmp/%d", i))))
	}
	must(t, os.Mkdir(m.path("tmp/0"), 0o755))
}

// Maps and files that are only in the index count, and are found again by counting.
func TestQuotaCountsWhatIsHidden(t *testing.T) {
	m := mount(t, sampleLower(), Options{Bytes: 64 << 20})
	big, err := os.OpenFile(m.path("big"), os.O_WRONLY, 0)
	must(t, err)
	_, err = big.WriteAt([]byte("x"), 500000)
	must(t, err)
	must(t, big.Close())
	must(t, os.Chmod(m.path("bin/ls"), 0o700))
	kept, inodes := used(m)
	if kept < 2*blockSize {
		t.Errorf("a block and a map take %d bytes", kept)
	}
	c, err := m.fs.upper.count()
	must(t, err)
	if c.Bytes != kept || c.Inodes != inodes {
		t.Errorf("counted %+v, kept %d bytes and %d inodes", c, kept, inodes)
	}
	must(t, os.Remove(m.path("big")))
	m.remount()
	if now, _ := used(m); now >= kept-blockSize {
		t.Errorf("%d bytes after removing the file, %d before", now, kept)
	}
}
