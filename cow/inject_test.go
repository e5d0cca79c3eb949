package cow

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// changing are the system calls that change an upper.
const changing = "openat2,mkdirat,mknodat,symlinkat,linkat,unlinkat,renameat,renameat2,setxattr,lsetxattr,lremovexattr," +
	"fchownat,fchmodat,fchmodat2,utimensat,ftruncate,fallocate,pwrite64"

// TestKillAtEveryStep kills the server before the first, the second, ... system call by which a thread of it changes the
// upper: the operation has then happened, or it has not.
func TestKillAtEveryStep(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not installed: it kills at a given system call")
	}
	ops := map[string]func(root string) error{
		"create over a whiteout": func(r string) error { return os.WriteFile(r+"/etc/gone", nil, 0o4755) },
		"mkdir over a whiteout":  func(r string) error { return os.Mkdir(r+"/etc/gone", 0o2755) },
		"write into a small file": func(r string) error {
			f, err := os.OpenFile(r+"/etc/passwd", os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("ROOT"), 0)
				f.Close()
			}
			return err
		},
		"write into a large file": func(r string) error {
			f, err := os.OpenFile(r+"/big", os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("here"), 70000)
				f.Close()
			}
			return err
		},
		"truncate":             func(r string) error { return os.Truncate(r+"/big", 1234) },
		"unlink a linked file": func(r string) error { return os.Remove(r + "/bin/ls") },
		"rename a linked file": func(r string) error { return os.Rename(r+"/bin/ls", r+"/etc/ls") },
		"link":                 func(r string) error { return os.Link(r+"/etc/shadow", r+"/opt/shadow") },
		"rename a directory":   func(r string) error { return os.Rename(r+"/opt", r+"/etc/opt") },
		"rename over":          func(r string) error { return os.Rename(r+"/etc/shadow", r+"/etc/passwd") },
		"rename over an emptied directory": func(r string) error {
			return unix.Rename(r+"/empty", r+"/run") // os.Rename looks first, and refuses
		},
		"exchange": func(r string) error {
			return unix.Renameat2(unix.AT_FDCWD, r+"/opt", unix.AT_FDCWD, r+"/bin", unix.RENAME_EXCHANGE)
		},
		"chown": func(r string) error { return os.Chown(r+"/bin/su", 7, 8) },
		"rmdir": func(r string) error { return os.Remove(r + "/run") },
	}
	kept := []string{"root", "user-file"}
	if testing.Short() { // with the race detector, for which once is enough
		kept = kept[:1]
		maps.DeleteFunc(ops, func(name string, _ func(string) error) bool { return !strings.HasPrefix(name, "rename") })
	}
	for _, mode := range kept {
		for name, op := range ops {
			t.Run(mode+"/"+name, func(t *testing.T) {
				t.Parallel()
				prepare := func() *served {
					s := serveProcess(t, mode, 0)
					must(t, os.WriteFile(s.dir+"/etc/gone", nil, 0o644))
					must(t, os.Remove(s.dir+"/etc/gone"))
					must(t, os.Remove(s.dir+"/run/fifo"))
					must(t, os.Remove(s.dir+"/etc/debian_version"))
					return s
				}
				s := prepare()
				before := lookAll(t, s.dir)
				must(t, op(s.dir))
				after := lookAll(t, s.dir)
				s.kill()
				kills := 0
				for step, spared := 1, 0; spared < 2 && step < 40; step++ {
					s := prepare()
					s.kill()
					killed := s.killedAt(step, op)
					s.start()
					got := lookAll(t, s.dir)
					if killed {
						kills++
					} else {
						spared++
					}
					if !maps.Equal(got, after) && (!killed || !maps.Equal(got, before)) {
						t.Errorf("killed at change %d it is neither as before nor as after:", step)
						wantSame(t, before, got)
					}
					s.kill()
				}
				if kills == 0 {
					t.Error("it was never killed")
				}
			})
		}
	}
}

// killedAt runs op on a server whose threads die before their step'th change, and reports whether it did.
func (s *served) killedAt(step int, op func(root string) error) (killed bool) {
	s.t.Helper()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(s.t, err)
	file := os.NewFile(uintptr(dev), "fuse")
	defer file.Close()
	must(s.t, unix.Mount("cowtest", s.dir, "fuse.cowtest", unix.MS_MGC_VAL,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=131072", dev)))
	defer unix.Unmount(s.dir, unix.MNT_DETACH)
	self, err := os.Open("/proc/self/exe")
	must(s.t, err)
	defer self.Close()
	cmd := exec.Command("strace", "-f", "-qqq", "-o", "/dev/null", "-e", "trace="+changing,
		"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", changing, step), "/proc/self/fd/4")
	cmd.ExtraFiles = []*os.File{file, self}
	cmd.Env = []string{serveEnv + "=" + s.mode + ":" + s.upper, "PATH=" + os.Getenv("PATH")}
	out, err := cmd.StdoutPipe()
	must(s.t, err)
	must(s.t, cmd.Start())
	file.Close()
	defer func() {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid))
		for _, pid := range strings.Fields(string(children)) {
			exec.Command("kill", "-9", pid).Run()
		}
		cmd.Process.Kill()
		cmd.Wait()
	}()
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return true // while it opened the upper
	}
	if err := op(s.dir); err != nil {
		return true
	}
	_, err = os.Stat(filepath.Join(s.dir, "etc", "nothing-of-this-name"))
	return !os.IsNotExist(err)
}
