package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestReadOnly tries every call that changes something, as root and as somebody else, in a mounted image and in the same tree
// as ext4 that is mounted read-only: both say the same.
func TestReadOnly(t *testing.T) {
	needRoot(t)
	s := serve(t, registry.Options{})
	img, err := testimage.Image(testimage.Config{}, readOnlyLayer(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddImage("test/ro", img); err != nil {
		t.Fatal(err)
	}
	ours := t.TempDir() // before the home, by whose end it is unmounted
	h := newHome(t)
	h.must("msb-fs", "mount", "--insecure", s.Host()+"/test/ro", ours)
	theirs := ext4Of(t, ours)
	for _, uid := range []int{0, 65534} {
		for _, c := range modifying() {
			got, want := as(uid, ours, c.call), as(uid, theirs, c.call)
			if got != want {
				t.Errorf("uid %d: %s: %v, ext4 says %v", uid, c.name, got, want)
			}
			if c.erofs && uid == 0 && got != unix.EROFS {
				t.Errorf("uid %d: %s: %v", uid, c.name, got)
			}
		}
	}
	h.must("msb-fs", "umount", ours)
}

func readOnlyLayer(t *testing.T) *testimage.Layer {
	t.Helper()
	l, err := testimage.NewLayer(testimage.EStargz,
		testimage.File("file", "content\n"), testimage.File("all", "everybody's\n").Perm(0o666), testimage.File("none", "").Perm(0),
		testimage.File("attr", "x").Xattr("user.a", "b"), testimage.Symlink("link", "file"), testimage.Symlink("dangling", "nowhere"),
		testimage.Dir("empty", 0o755), testimage.Dir("dir", 0o755), testimage.File("dir/below", ""), testimage.Dir("tmp", 0o1777), testimage.File("tmp/f", "f"),
		testimage.Fifo("fifo"), testimage.CharDevice("null", 1, 3))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ext4Of mounts a copy of the tree at dir as ext4, as our mounts are: read-only, without devices and set-uid programs.
func ext4Of(t *testing.T, dir string) string {
	t.Helper()
	work := t.TempDir()
	disk, at := filepath.Join(work, "disk"), filepath.Join(work, "at")
	err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 16<<20), os.Mkdir(at, 0o755), os.Chmod(filepath.Dir(work), 0o755), os.Chmod(work, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", "-d", dir, disk}, {"mount", "-o", "loop,ro,nodev,nosuid", disk, at}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return at
}

// as runs call as a user and returns its error. Credentials are a thread's: this one ends with the call.
func as(uid int, root string, call func(root string) error) (no syscall.Errno) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocks
		if uid != 0 {
			for _, id := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
				if _, _, no = unix.RawSyscall(id, uintptr(uid), uintptr(uid), uintptr(uid)); no != 0 {
					return
				}
			}
		}
		if err := call(root); !errors.As(err, &no) && err != nil {
			panic(err)
		}
	}()
	<-done
	return no
}

// modification is a call that would change the tree.
type modification struct {
	name  string
	erofs bool // what it says to root
	call  func(root string) error
}

// modifying are such calls, on what is there, on what is not, and on files that are open.
func modifying() (all []modification) {
	add := func(name string, erofs bool, call func(root string) error) {
		all = append(all, modification{name, erofs, call})
	}
	for _, f := range []string{"file", "all", "none", "link", "dir", "fifo", "null", "missing", "dangling", "dir/below/x"} {
		there := f != "missing" && f != "dangling" && f != "dir/below/x"
		for flag, name := range map[int]string{unix.O_WRONLY: "O_WRONLY", unix.O_RDWR: "O_RDWR", unix.O_TRUNC: "O_TRUNC", unix.O_CREAT: "O_CREAT", unix.O_CREAT | unix.O_EXCL: "O_EXCL", unix.O_CREAT | unix.O_WRONLY: "O_CREAT and O_WRONLY"} {
			add(fmt.Sprintf("open %s, %s", f, name), false, func(root string) error {
				fd, err := unix.Open(root+"/"+f, flag|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o644)
				if err == nil {
					err = unix.Close(fd)
				}
				return err
			})
		}
		onPath := map[string]func(p string) error{
			"truncate":      func(p string) error { return unix.Truncate(p, 1) },
			"chmod":         func(p string) error { return unix.Chmod(p, 0o600) },
			"chown":         func(p string) error { return unix.Chown(p, 1, 1) },
			"lchown":        func(p string) error { return unix.Lchown(p, 1, 1) },
			"utimensat":     func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, make([]unix.Timespec, 2), 0) },
			"utimensat now": func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, nil, 0) },
			"utimensat of the link": func(p string) error {
				return unix.UtimesNanoAt(unix.AT_FDCWD, p, make([]unix.Timespec, 2), unix.AT_SYMLINK_NOFOLLOW)
			},
			"setxattr user":    func(p string) error { return unix.Setxattr(p, "user.x", []byte("y"), 0) },
			"setxattr trusted": func(p string) error { return unix.Setxattr(p, "trusted.x", []byte("y"), 0) },
			"lsetxattr":        func(p string) error { return unix.Lsetxattr(p, "trusted.x", []byte("y"), 0) },
			"removexattr":      func(p string) error { return unix.Removexattr(p, "user.x") },
			"access W_OK":      func(p string) error { return unix.Access(p, unix.W_OK) },
			"mkdir":            func(p string) error { return unix.Mkdir(p, 0o755) },
			"mknod":            func(p string) error { return unix.Mknod(p, unix.S_IFIFO|0o644, 0) },
			"mknod of a file":  func(p string) error { return unix.Mknod(p, unix.S_IFREG|0o644, 0) },
			"symlink":          func(p string) error { return unix.Symlink("x", p) },
			"unlink":           func(p string) error { return unix.Unlink(p) },
			"rmdir":            func(p string) error { return unix.Rmdir(p) },
		}
		for name, call := range onPath {
			add(name+" "+f, there && (name == "chmod" || name == "chown" || name == "lchown" || name == "unlink" && f != "dir"), func(root string) error { return call(root + "/" + f) })
		}
		for _, to := range []string{"missing", "file", "empty", "tmp/x"} {
			add("rename "+f+" "+to, there, func(root string) error { return unix.Rename(root+"/"+f, root+"/"+to) })
			add("link "+f+" "+to, false, func(root string) error { return unix.Link(root+"/"+f, root+"/"+to) })
			for flag, name := range map[uint]string{unix.RENAME_NOREPLACE: "RENAME_NOREPLACE", unix.RENAME_EXCHANGE: "RENAME_EXCHANGE"} {
				add(fmt.Sprintf("%s %s %s", name, f, to), false, func(root string) error {
					return unix.Renameat2(unix.AT_FDCWD, root+"/"+f, unix.AT_FDCWD, root+"/"+to, flag)
				})
			}
		}
	}
	add("O_TMPFILE", true, func(root string) error {
		fd, err := unix.Open(root+"/tmp", unix.O_TMPFILE|unix.O_RDWR, 0o600)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	})
	add("rmdir empty", true, func(root string) error { return unix.Rmdir(root + "/empty") })
	add("unlink in a directory of everybody's", true, func(root string) error { return unix.Unlink(root + "/tmp/f") })
	add("create in a directory of everybody's", true, func(root string) error { return unix.Mkdir(root+"/tmp/new", 0o755) })
	add("rename from elsewhere", false, func(root string) error { return unix.Rename("/dev/null", root+"/x") })
	add("removexattr of one that is there", true, func(root string) error { return unix.Removexattr(root+"/attr", "user.a") })
	for name, call := range map[string]func(fd int) error{
		"write":     func(fd int) error { _, err := unix.Write(fd, []byte("x")); return err },
		"ftruncate": func(fd int) error { return unix.Ftruncate(fd, 0) },
		"fallocate": func(fd int) error { return unix.Fallocate(fd, 0, 0, 4096) },
		"fchmod":    func(fd int) error { return unix.Fchmod(fd, 0o600) },
		"fchown":    func(fd int) error { return unix.Fchown(fd, 1, 1) },
		"futimens":  func(fd int) error { return unix.Futimes(fd, make([]unix.Timeval, 2)) },
		"fsetxattr": func(fd int) error { return unix.Fsetxattr(fd, "user.x", []byte("y"), 0) },
		"fsync":     unix.Fsync,
		"fdatasync": unix.Fdatasync,
		"syncfs":    unix.Syncfs,
		"flock":     func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) },
		"write lock": func(fd int) error {
			return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		},
		"read lock": func(fd int) error {
			return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK})
		},
		"a mapping to write to": func(fd int) error {
			p, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err == nil {
				err = unix.Munmap(p)
			}
			return err
		},
		"copy_file_range": func(fd int) error { _, err := unix.CopyFileRange(fd, nil, fd, nil, 1, 0); return err },
	} {
		for _, f := range []string{"file", "dir"} {
			add(name+", open "+f, false, func(root string) error {
				fd, err := unix.Open(root+"/"+f, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return call(fd)
			})
		}
	}
	return all
}
