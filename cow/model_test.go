package cow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/microsandbox/msb-fs/fs"
)

// unpack writes a lower to a directory, for overlayfs to have the same.
func unpack(t testing.TB, l *memLower, dir string) {
	t.Helper()
	done := make(map[uint64]string)
	var walk func(id uint64, at string)
	walk = func(id uint64, at string) {
		f := l.files[id]
		if old := done[id]; old != "" {
			must(t, os.Link(old, at))
			return
		}
		done[id] = at
		switch f.attr.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if id != fs.Root {
				must(t, os.Mkdir(at, 0o755))
			}
			for _, name := range f.names {
				walk(f.kids[name], filepath.Join(at, name))
			}
		case unix.S_IFREG:
			must(t, os.WriteFile(at, f.data, 0o600))
		case unix.S_IFLNK:
			must(t, os.Symlink(f.target, at))
		default:
			must(t, unix.Mknod(at, f.attr.Mode, int(f.attr.Rdev)))
		}
		must(t, os.Lchown(at, int(f.attr.UID), int(f.attr.GID)))
		if f.attr.Mode&unix.S_IFMT != unix.S_IFLNK {
			must(t, unix.Chmod(at, f.attr.Mode&07777))
		}
		for name, v := range f.xattrs {
			must(t, unix.Lsetxattr(at, name, []byte(v), 0))
		}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at, timesOf(f.attr)[:], unix.AT_SYMLINK_NOFOLLOW))
	}
	walk(fs.Root, dir)
}

// overlay mounts the kernel's overlayfs over an unpacked lower.
func overlay(t testing.TB, l *memLower) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	unpack(t, l, filepath.Join(dir, "lower"))
	opts := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work,redirect_dir=on,index=on,metacopy=off", dir)
	merged := filepath.Join(dir, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
		t.Skipf("no overlayfs here to compare with: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
			unix.Unmount(merged, unix.MNT_DETACH)
		}
	})
	return merged
}

// op is one operation of a random sequence. It returns what the caller of the system call sees.
type op struct {
	kind   string
	a, b   string // paths below the root
	n, off int64
}

func (o op) String() string { return fmt.Sprintf("%s %s %s n=%d off=%d", o.kind, o.a, o.b, o.n, o.off) }

var opKinds = []string{"create", "excl", "write", "append", "truncate", "read", "unlink", "rmdir", "mkdir", "rename", "rename", "noreplace",
	"exchange", "link", "symlink", "mkfifo", "mknod", "chmod", "chown", "utimes", "setxattr", "rmxattr", "list", "stat", "punch", "zero", "falloc",
	"copyrange", "tmpfile", "hold", "heldwrite", "release", "remount", "reserve", "acl", "defacl", "rmacl", "setcap", "flock", "ofdlock", "relink",
	"asuser write", "asuser truncate", "asuser chmod", "asuser chown", "asuser create", "asuser mkdir", "asuser unlink", "asuser rename", "asuser link", "asuser read"}

var opPaths = []string{"etc", "etc/debian_version", "etc/passwd", "etc/shadow", "etc/localtime", "etc/new", "etc/d", "bin/ls", "bin/cat", "bin/busybox",
	"bin/su", "bin", "opt", "opt/app", "opt/app/lib", "opt/app/lib/a.py", "opt/app/main.py", "opt2", "opt2/app", "opt2/app/lib", "big", "empty", "empty/x",
	"empty/y", "empty/x/z", "tmp/t", "tmp/u", "run/fifo", "dev/null", "new", "new/sub", "new/sub/f", "etc/app", "etc/d/lib", "bin/h"}

func drawOp(t *rapid.T, paths []string) op {
	o := op{kind: rapid.SampledFrom(opKinds).Draw(t, "op")}
	o.a = rapid.SampledFrom(paths).Draw(t, "a")
	kind := strings.TrimPrefix(o.kind, asUser)
	switch kind {
	case "rename", "noreplace", "exchange", "link", "copyrange":
		o.b = rapid.SampledFrom(paths).Draw(t, "b")
	}
	switch kind {
	case "write", "append", "truncate", "read", "punch", "zero", "falloc", "copyrange", "heldwrite", "reserve":
		o.n = rapid.Int64Range(0, 20000).Draw(t, "n")
		o.off = rapid.SampledFrom([]int64{0, 1, 4095, 4096, 5000, 65536, 100000, 1 << 20}).Draw(t, "off")
	case "flock", "ofdlock", "relink":
		o.n = rapid.Int64Range(0, 7).Draw(t, "n")
	case "chmod", "chown", "utimes", "setxattr", "mkdir", "create", "excl", "tmpfile", "acl", "defacl":
		o.n = rapid.SampledFrom([]int64{0o644, 0o755, 0o700, 0o4755, 0o2755, 0o1777, 0o600}).Draw(t, "n")
	}
	return o
}

// side is one of the file systems that get the same operations.
type side struct {
	root string
	held []int
}

func (s *side) close() {
	for _, fd := range s.held {
		unix.Close(fd)
	}
	s.held = nil
}

func pattern(n, seed int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(seed*31 + int64(i)*7 + int64(i)>>8)
	}
	return b
}

// asUser before the kind of an operation: it is done by somebody without privileges.
const asUser = "asuser "

// modelUser is who that is: chown in a model gives files to such people, too.
const modelUser = 0o644

func (s *side) do(o op) string {
	if kind, ok := strings.CutPrefix(o.kind, asUser); ok {
		o.kind = kind
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		unix.SetfsgidRetGid(modelUser)
		unix.SetfsuidRetUid(modelUser)
		defer unix.SetfsgidRetGid(0)
		defer unix.SetfsuidRetUid(0)
	}
	a, b := filepath.Join(s.root, o.a), filepath.Join(s.root, o.b)
	withFile := func(flags int, fn func(fd int) error) error {
		fd, err := unix.Open(a, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o666)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return fn(fd)
	}
	result := ""
	var err error
	switch o.kind {
	case "create":
		err = withFile(unix.O_WRONLY|unix.O_CREAT, func(fd int) error { return nil })
	case "excl":
		err = withFile(unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, func(fd int) error { _, err := unix.Write(fd, pattern(9000, o.n)); return err })
	case "write":
		err = withFile(unix.O_WRONLY, func(fd int) error { _, err := unix.Pwrite(fd, pattern(o.n, o.off), o.off); return regular(fd, err) })
	case "append":
		err = withFile(unix.O_WRONLY|unix.O_APPEND, func(fd int) error { _, err := unix.Write(fd, pattern(o.n, o.off)); return regular(fd, err) })
	case "truncate":
		err = withFile(unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, o.off+o.n) })
	case "read":
		err = withFile(unix.O_RDONLY, func(fd int) error {
			if err := regular(fd, nil); err != nil {
				return err
			}
			buf := make([]byte, o.n)
			n, err := unix.Pread(fd, buf, o.off)
			result = fmt.Sprintf("%x", buf[:max(n, 0)])
			return err
		})
	case "unlink":
		err = unix.Unlink(a)
	case "rmdir":
		err = unix.Rmdir(a)
	case "mkdir":
		err = unix.Mkdir(a, uint32(o.n))
	case "rename":
		err = unix.Rename(a, b)
	case "noreplace":
		err = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE)
	case "exchange":
		err = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	case "link":
		err = unix.Link(a, b)
	case "symlink":
		err = unix.Symlink("../etc/passwd", a)
	case "mkfifo":
		err = unix.Mknod(a, unix.S_IFIFO|0o640, 0)
	case "mknod":
		err = unix.Mknod(a, unix.S_IFBLK|0o640, int(unix.Mkdev(7, 300)))
	case "chmod":
		err = unix.Fchmodat(unix.AT_FDCWD, a, uint32(o.n), unix.AT_SYMLINK_NOFOLLOW)
	case "chown":
		err = unix.Lchown(a, int(o.n), int(o.n)+1)
	case "utimes":
		err = unix.UtimesNanoAt(unix.AT_FDCWD, a, []unix.Timespec{{Sec: o.n, Nsec: 5}, {Sec: o.n * 3, Nsec: 999999999}}, unix.AT_SYMLINK_NOFOLLOW)
	case "setxattr":
		err = unix.Lsetxattr(a, "trusted.test", pattern(o.n/8, 1), 0)
		if err == nil && o.n&1 == 0 {
			err = unix.Lsetxattr(a, "user.test", []byte("v"), unix.XATTR_CREATE)
		}
	case "rmxattr":
		err = unix.Lremovexattr(a, "trusted.test")
	case "list":
		var names []string
		var es []os.DirEntry
		es, err = os.ReadDir(a)
		for _, e := range es {
			names = append(names, fmt.Sprint(e.Name(), e.Type()))
		}
		sort.Strings(names)
		result = strings.Join(names, " ")
	case "stat":
		result, err = look(a)
	case "punch", "zero", "falloc":
		mode := map[string]uint32{"punch": unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, "zero": unix.FALLOC_FL_ZERO_RANGE}[o.kind]
		err = withFile(unix.O_WRONLY, func(fd int) error {
			if err := regular(fd, nil); err != nil {
				return err
			}
			return unix.Fallocate(fd, mode, o.off, o.n+1)
		})
	case "copyrange":
		err = withFile(unix.O_RDONLY, func(in int) error {
			if err := regular(in, nil); err != nil {
				return err
			}
			out, err := unix.Open(b, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
			if err != nil {
				return err
			}
			defer unix.Close(out)
			if err := regular(out, nil); err != nil {
				return err
			}
			from, to := o.off, int64(3)
			for left := int(o.n); left > 0; {
				n, err := unix.CopyFileRange(in, &from, out, &to, left, 0)
				if err != nil || n == 0 {
					return err
				}
				left -= n
			}
			return nil
		})
	case "tmpfile":
		var fd int
		if fd, err = unix.Open(filepath.Dir(a), unix.O_TMPFILE|unix.O_RDWR, uint32(o.n)&0o777); err == nil {
			unix.Write(fd, []byte("tmpfile"))
			err = unix.Linkat(unix.AT_FDCWD, procFD(fd), unix.AT_FDCWD, a, unix.AT_SYMLINK_FOLLOW)
			unix.Close(fd)
		}
	case "hold":
		fd, e := unix.Open(a, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err = e; err == nil {
			if err = regular(fd, nil); err == nil {
				s.held = append(s.held, fd)
			} else {
				unix.Close(fd)
			}
		}
	case "heldwrite":
		if len(s.held) > 0 {
			fd := s.held[int(o.n)%len(s.held)]
			var st unix.Stat_t
			if _, err = unix.Pwrite(fd, pattern(100, o.n), o.off); err == nil {
				err = unix.Fstat(fd, &st)
			}
			buf := make([]byte, 9000)
			n, _ := unix.Pread(fd, buf, max(0, o.off-4000))
			result = fmt.Sprintf("size=%d nlink=%d %o %x", st.Size, st.Nlink, st.Mode, buf[:max(n, 0)])
		}
	case "release":
		s.close()
	case "reserve":
		err = withFile(unix.O_WRONLY, func(fd int) error {
			if err := regular(fd, nil); err != nil {
				return err
			}
			return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, o.off, o.n+1)
		})
	case "acl", "defacl":
		list := acl{{aclUserObj, uint16(o.n >> 6 & 7), ^uint32(0)}, {aclUser, 6, modelUser}, {aclGroupObj, uint16(o.n >> 3 & 7), ^uint32(0)},
			{aclGroup, 5, 42}, {aclMask, uint16(o.n >> 3 & 7), ^uint32(0)}, {aclOther, uint16(o.n & 7), ^uint32(0)}}
		if o.n&0o4000 != 0 {
			list = acl{list[0], list[2], list[5]}
		}
		err = unix.Setxattr(a, map[string]string{"acl": xattrACL, "defacl": xattrDefaultACL}[o.kind], list.bytes(), 0)
	case "rmacl":
		for _, attr := range []string{xattrACL, xattrDefaultACL} {
			if e := unix.Removexattr(a, attr); err == nil && e != unix.ENODATA { // of the lower's files overlayfs says so, ext4 does not
				err = e
			}
		}
	case "setcap":
		err = unix.Lsetxattr(a, xattrCaps, []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
	case "flock", "ofdlock", "relink":
		if len(s.held) == 0 {
			break
		}
		fd := s.held[int(o.n)%len(s.held)]
		switch o.kind {
		case "flock":
			err = unix.Flock(fd, []int{unix.LOCK_EX, unix.LOCK_SH, unix.LOCK_UN}[o.n%3]|unix.LOCK_NB)
		case "ofdlock":
			err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: []int16{unix.F_WRLCK, unix.F_RDLCK, unix.F_UNLCK}[o.n%3], Start: o.n * 10, Len: 15})
		case "relink":
			err = unix.Linkat(unix.AT_FDCWD, procFD(fd), unix.AT_FDCWD, a, unix.AT_SYMLINK_FOLLOW)
		}
	}
	if err != nil {
		var no syscall.Errno
		errors.As(err, &no)
		return fmt.Sprintf("errno %d (%v)", int(no), no)
	}
	return result
}

// regular turns writing to what is no regular file into an error: what happens then is not the file system's matter.
func regular(fd int, err error) error {
	var st unix.Stat_t
	if e := unix.Fstat(fd, &st); e == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.ENOTSUP
	}
	return err
}

// look is what both file systems must agree on.
func look(path string) (string, error) {
	line, err := describe(path)
	if err != nil {
		return "", err
	}
	var keep []string
	for _, f := range strings.Fields(line) {
		if strings.HasPrefix(f, "ino=") || strings.HasPrefix(f, "mtime=") || strings.HasPrefix(f, "security.selinux") ||
			strings.HasPrefix(f, "nlink=") && strings.HasPrefix(line, "04") {
			continue
		}
		keep = append(keep, f)
	}
	return strings.Join(keep, " "), nil
}

func lookAll(t testing.TB, root string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		out[rel], err = look(path)
		return err
	}))
	return out
}

func TestAgainstOverlayfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting overlayfs needs root")
	}
	old := unix.Umask(0o022)
	defer unix.Umask(old)
	for mode, o := range modes {
		t.Run(mode, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) { compare(t, rt, o) })
		})
	}
}

func compare(t *testing.T, rt *rapid.T, o Options) {
	// Few paths and many operations: so that they meet.
	paths := rapid.SliceOfNDistinct(rapid.SampledFrom(opPaths), 5, 8, rapid.ID[string]).Draw(rt, "paths")
	one := rapid.Custom(func(t *rapid.T) op { return drawOp(t, paths) })
	ops := rapid.SliceOfN(one, 40, 120).Draw(rt, "ops")
	var failed string
	ok := t.Run("run", func(t *testing.T) { failed = runBoth(t, ops, o) })
	if failed != "" {
		rt.Fatalf("%s", failed)
	}
	if !ok {
		rt.FailNow()
	}
}

// runBoth does ops on overlayfs and on ours, and says where they differ.
func runBoth(t *testing.T, ops []op, o Options) (failed string) {
	l := sampleLower()
	theirs := side{root: overlay(t, l)}
	m := mount(t, l, o)
	ours := side{root: m.dir}
	defer theirs.close()
	defer ours.close()
	for i, op := range ops {
		if op.kind == "remount" {
			ours.close()
			theirs.close()
			before := snapshot(t, m.dir)
			m.remount()
			after := snapshot(t, m.dir)
			for name, w := range before {
				if after[name] != w {
					failed = fmt.Sprintf("op %d: remount changed %s:\n was %s\n now %s", i, name, w, after[name])
					return failed
				}
			}
			if len(after) != len(before) {
				return fmt.Sprintf("op %d: remount changed the number of names: %d, was %d", i, len(after), len(before))
			}
			continue
		}
		want, got := theirs.do(op), ours.do(op)
		if want != got {
			return fmt.Sprintf("op %d: %v:\n overlayfs %.500s\n ours      %.500s", i, op, want, got)
		}
	}
	ours.close()
	theirs.close()
	want, got := lookAll(t, theirs.root), lookAll(t, ours.root)
	for name := range want {
		if want[name] != got[name] {
			failed = fmt.Sprintf("at the end %s:\n overlayfs %s\n ours      %s", name, want[name], got[name])
		}
	}
	for name := range got {
		if want[name] == "" {
			failed = fmt.Sprintf("at the end %s exists only on ours", name)
		}
	}
	return failed
}

// The lower serves what it was given.
func TestMemLower(t *testing.T) {
	l := sampleLower()
	id, a, err := l.Lookup(context.Background(), fs.Root, "etc")
	if err != nil || !a.IsDir() || id == fs.Root {
		t.Fatal(id, a, err)
	}
}
