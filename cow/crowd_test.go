package cow

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/openat"
)

// By hand, or by make soak-cow: -crowd.entries=1000000 -crowd.files=10000000
var (
	crowdDepth   = flag.Int("crowd.depth", 5000, "depth of TestDeepTree's tree")
	crowdEntries = flag.Int("crowd.entries", 10000, "entries of TestCrowdedDirectory's directory")
	crowdFiles   = flag.Int("crowd.files", 10000, "files that TestManyFiles makes")
)

// memory is the resident memory of the server in bytes, now and at most.
func (s *served) memory() (now, most int64) {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	must(s.t, err)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = kib << 10
		case "VmHWM:":
			most = kib << 10
		}
	}
	return now, most
}

func openDir(t testing.TB, dir int, name string) int {
	t.Helper()
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	must(t, err)
	return fd
}

// down goes depth directories of one name deeper than fd, which it closes.
func down(t testing.TB, fd int, name string, depth int, visit func(fd int)) int {
	t.Helper()
	for range depth {
		visit(fd)
		sub := openDir(t, fd, name)
		unix.Close(fd)
		fd = sub
	}
	return fd
}

// TestDeepTree makes a tree far deeper than a path may be long, partly of the lower's directories, renames its top, mounts
// it again, exports and removes it.
func TestDeepTree(t *testing.T) {
	for _, mode := range []string{"root", "user-file"} {
		t.Run(mode, func(t *testing.T) {
			s := serveProcess(t, mode, 0)
			depth := *crowdDepth
			if testing.Short() {
				depth = min(depth, 600)
			}
			at := openDir(t, unix.AT_FDCWD, s.dir+"/tmp")
			at = down(t, at, "d", depth, func(fd int) { must(t, unix.Mkdirat(fd, "d", 0o755)) })
			fd, err := unix.Openat(at, "bottom", unix.O_CREAT|unix.O_WRONLY, 0o644)
			must(t, err)
			must(t, unix.Close(fd))
			must(t, unix.Rename(s.dir+"/opt/app", procFD(at)+"/app"))
			must(t, os.Rename(s.dir+"/tmp/d", s.dir+"/etc/d"))
			wantErrno(t, unix.Renameat(unix.AT_FDCWD, s.dir+"/etc/d", at, "x"), unix.EINVAL)
			must(t, unix.Close(at))

			s.kill()
			f, err := New(sampleLower(), s.upper, modes[mode])
			must(t, err)
			changes := 0
			for _, err := range f.Diff(t.Context()) {
				must(t, err)
				changes++
			}
			if changes < depth+5 {
				t.Errorf("%d changes in a tree of %d directories", changes, depth)
			}
			must(t, f.ExportLayer(t.Context(), io.Discard))
			must(t, f.Close())
			s.start()

			at = openDir(t, unix.AT_FDCWD, s.dir+"/etc")
			at = down(t, at, "d", depth, func(int) {})
			wantFile(t, procFD(at)+"/app/lib/a.py", "a\n")
			var st unix.Stat_t
			must(t, unix.Fstatat(at, "bottom", &st, 0))
			unix.Close(at)
			must(t, os.Rename(s.dir+"/etc/d", s.dir+"/opt/d"))
			must(t, os.RemoveAll(s.dir+"/opt/d"))
			must(t, os.Remove(s.dir+"/opt"))
			now, most := s.memory()
			t.Logf("%d directories: %d MiB, at most %d MiB", depth, now>>20, most>>20)
		})
	}
}

// eachEntry reads a directory by small pieces.
func eachEntry(t testing.TB, fd int, fn func(name string)) {
	t.Helper()
	buf := make([]byte, 8192)
	for {
		more, err := openat.Dirents(fd, buf, func(d openat.Dirent) bool {
			if d.Name != "." && d.Name != ".." {
				fn(d.Name)
			}
			return true
		})
		must(t, err)
		if !more {
			return
		}
	}
}

// TestCrowdedDirectory fills a directory, lists it before and after mounting it again, and empties it while it is listed.
func TestCrowdedDirectory(t *testing.T) {
	s := serveProcess(t, "root", 0)
	entries := *crowdEntries
	dir := s.dir + "/etc" // which has names of the lower
	at := openDir(t, unix.AT_FDCWD, dir)
	for i := range entries {
		must(t, unix.Mknodat(at, fmt.Sprint("a new file ", i), unix.S_IFREG|0o644, 0))
	}
	now, _ := s.memory()
	t.Logf("%d files made: %d MiB", entries, now>>20)
	list := func() {
		t.Helper()
		seen := make([]bool, entries)
		others := 0
		at := openDir(t, unix.AT_FDCWD, dir)
		defer unix.Close(at)
		eachEntry(t, at, func(name string) {
			n, ok := strings.CutPrefix(name, "a new file ")
			i, err := strconv.Atoi(n)
			if !ok || err != nil {
				others++
				return
			}
			if seen[i] {
				t.Errorf("%q is listed twice", name)
			}
			seen[i] = true
		})
		if i := bytes.IndexByte(boolBytes(seen), 0); i >= 0 || others != 4 {
			t.Errorf("file %d is not listed, or other than 4 of the lower's: %d", i, others)
		}
	}
	list()
	unix.Close(at)
	s.kill()
	s.start()
	list()
	now, most := s.memory()
	t.Logf("%d files listed: %d MiB, at most %d MiB", entries, now>>20, most>>20)
	at = openDir(t, unix.AT_FDCWD, dir)
	defer unix.Close(at)
	gone := 0
	eachEntry(t, at, func(name string) {
		must(t, unix.Unlinkat(at, name, 0))
		gone++
	})
	if gone != entries+4 {
		t.Errorf("%d names were listed while they were removed, of %d", gone, entries+4)
	}
	must(t, os.Remove(dir))
	now, most = s.memory()
	t.Logf("%d files removed: %d MiB, at most %d MiB", entries, now>>20, most>>20)
	if limit := int64(128<<20) + int64(entries)*600; most > limit && !testing.Short() { // the race detector takes more
		t.Errorf("the server took %d MiB for %d files", most>>20, entries)
	}
}

func boolBytes(b []bool) []byte {
	out := make([]byte, len(b))
	for i, v := range b {
		if v {
			out[i] = 1
		}
	}
	return out
}

// TestManyFiles makes tiny files without an end. What a server remembers of a file is small, and gone when the kernel
// forgets it.
func TestManyFiles(t *testing.T) {
	s := serveProcess(t, "root", 0)
	const perDir = 10000
	for i := range *crowdFiles {
		dir := fmt.Sprintf("%s/tmp/%d", s.dir, i/perDir)
		if i%perDir == 0 {
			must(t, os.Mkdir(dir, 0o755))
		}
		must(t, unix.Mknod(fmt.Sprintf("%s/%d", dir, i), unix.S_IFREG|0o644, 0))
		if i%500000 == 499999 {
			now, _ := s.memory()
			t.Logf("%d files: %d MiB, %d bytes each", i+1, now>>20, now/int64(i+1))
		}
	}
	_, most := s.memory()
	if limit := int64(128<<20) + int64(*crowdFiles)*600; most > limit && !testing.Short() {
		t.Errorf("the server took %d MiB for %d files", most>>20, *crowdFiles)
	}
	for i := 0; i < *crowdFiles; i += perDir {
		must(t, os.RemoveAll(fmt.Sprintf("%s/tmp/%d", s.dir, i/perDir)))
	}
	now, most := s.memory()
	t.Logf("all removed: %d MiB, at most %d MiB", now>>20, most>>20)
}
