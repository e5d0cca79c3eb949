package cow

import (
	"bytes"
	"math/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// inPlaceEnv names the root of a tree to test where it is, as a guest sees it: it has empty/, a directory, and big, a file
// of more than a megabyte. The binary of these tests runs by itself: go test -c.
const inPlaceEnv = "COW_TEST_ROOT"

// TestInPlace runs go-fuse's conformance tests and fsx in a tree that somebody else serves; without one, another process.
func TestInPlace(t *testing.T) {
	root := os.Getenv(inPlaceEnv)
	if root == "" {
		root = serveProcess(t, "root", 0).dir
	}
	for name, fn := range posixtest.All {
		if name == "FcntlFlockLocksFile" { // see TestPosix
			continue
		}
		if name == "OpenSymlinkRace" && os.Getenv(inPlaceEnv) != "" {
			continue // it knows a link that was followed by the file system it leads to, and in a guest there is one only
		}
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(root, "empty", name)
			must(t, os.Mkdir(dir, 0o755))
			fn(t, dir)
		})
	}
	t.Run("fsx", func(t *testing.T) {
		data, err := os.ReadFile(root + "/big")
		must(t, err)
		x := &fsx{t: t, path: root + "/big", r: rand.New(rand.NewSource(*fsxSeed)), model: bytes.Clone(data)}
		x.open()
		defer func() { x.f.Close() }()
		for range *fsxOps {
			x.step()
		}
		must(t, x.f.Close())
		got, err := os.ReadFile(x.path)
		must(t, err)
		if !bytes.Equal(got, x.model) {
			x.fatal("the file differs from byte %d of %d on", firstDiff(got, x.model), len(x.model))
		}
		x.open()
	})
	t.Run("names", func(t *testing.T) { longAndDeep(t, filepath.Join(root, "empty")) })
}

// longAndDeep makes the longest names and a path much longer than one may be, renames its top, and removes it all.
func longAndDeep(t *testing.T, dir string) {
	long := string(bytes.Repeat([]byte{'n'}, 255))
	must(t, os.WriteFile(filepath.Join(dir, long), []byte("x"), 0o644))
	wantErrno(t, os.WriteFile(filepath.Join(dir, long+"n"), nil, 0o644), unix.ENAMETOOLONG)
	must(t, os.Rename(filepath.Join(dir, long), filepath.Join(dir, long[1:]+"m")))
	wantFile(t, filepath.Join(dir, long[1:]+"m"), "x")
	must(t, os.Remove(filepath.Join(dir, long[1:]+"m")))

	const depth = 400
	at, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(at, "deep", 0o755))
		sub, err := unix.Openat(at, "deep", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(at)
		at = sub
	}
	fd, err := unix.Openat(at, "bottom", unix.O_CREAT|unix.O_WRONLY, 0o644)
	must(t, err)
	must(t, unix.Close(fd))
	must(t, os.Rename(filepath.Join(dir, "deep"), filepath.Join(dir, "moved")))
	var st unix.Stat_t
	must(t, unix.Fstatat(at, "bottom", &st, 0))
	unix.Close(at)
	must(t, os.RemoveAll(filepath.Join(dir, "moved")))
}
