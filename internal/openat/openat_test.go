package openat

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenStaysBelow(t *testing.T) {
	top := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(top+"/dir/sub", 0o755), os.WriteFile(top+"/dir/sub/file", nil, 0o644), os.WriteFile(top+"/secret", nil, 0o644),
		os.Symlink("../secret", top+"/dir/out"), os.Symlink("sub", top+"/dir/in"), os.Symlink("/proc/self/root", top+"/dir/magic"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, err := unix.Open(top+"/dir", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	for _, c := range []struct {
		path string
		want error
	}{
		{"sub/file", nil}, {"sub", nil}, {".", nil},
		{"out", unix.ELOOP}, {"in/file", unix.ELOOP}, {"magic/etc", unix.ELOOP},
		{"..", unix.EXDEV}, {"sub/../../secret", unix.EXDEV}, {top + "/secret", unix.EXDEV}, {"none", unix.ENOENT},
	} {
		fd, err := Open(dir, c.path, unix.O_RDONLY, 0)
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, c.want) || err == nil && c.want != nil {
			t.Errorf("%s: %v, want %v", c.path, err, c.want)
		}
	}
}

func TestDirents(t *testing.T) {
	dir := t.TempDir()
	for i := range 500 {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	seen := map[string]bool{}
	for more := true; more; {
		more, err = Dirents(fd, make([]byte, 4096), func(d Dirent) bool {
			seen[d.Name] = true
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 502 {
		t.Errorf("%d entries, want 500, . and ..", len(seen))
	}
}

func FuzzParseDirent(f *testing.F) {
	f.Add([]byte("12345678" + "12345678" + "\x18\x00" + "\x08" + "name\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, size, err := parseDirent(b); err == nil && (size < 20 || size > len(b)) {
			t.Errorf("size %d of %d bytes", size, len(b))
		}
	})
}
