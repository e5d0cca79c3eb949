package cow

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// serveEnv makes the test binary a server of sampleLower on descriptor 3, /dev/fuse: "mode:upper".
const serveEnv = "COW_TEST_SERVE"

func TestMain(m *testing.M) {
	if what := os.Getenv(serveEnv); what != "" {
		if err := serve(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		f.Value.Set("12") // each mounts two file systems; say -rapid.checks=1000 to look for more
	}
	os.Exit(m.Run())
}

// serve says on standard output that it is ready, and serves until it is unmounted.
func serve(what string) error {
	f := strings.SplitN(what, ":", 2)
	fs, err := New(sampleLower(), f[1], modes[f[0]])
	if err != nil {
		return err
	}
	srv, err := fuse.NewServer(fs, "/dev/fd/3", ServerOptions(&fuse.MountOptions{}))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	srv.Serve()
	return fs.Close()
}

// served is an FS in a process of its own, which can be killed.
type served struct {
	t          testing.TB
	mode       string
	uid        uint32 // of the server
	dir, upper string
	cmd        *exec.Cmd
}

func serveProcess(t testing.TB, mode string, uid uint32) *served {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting in another process needs root")
	}
	s := &served{t: t, mode: mode, uid: uid, dir: t.TempDir(), upper: t.TempDir()}
	must(t, os.Chmod(filepath.Dir(s.upper), 0o755))
	must(t, os.Chown(s.upper, int(uid), int(uid)))
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *served) start() {
	s.t.Helper()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(s.t, err)
	file := os.NewFile(uintptr(dev), "fuse")
	defer file.Close()
	must(s.t, unix.Mount("cowtest", s.dir, "fuse.cowtest", unix.MS_MGC_VAL,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=131072", dev)))
	self, err := os.Open("/proc/self/exe") // which another user may not be able to name
	must(s.t, err)
	defer self.Close()
	s.cmd = exec.Command("/proc/self/fd/4")
	s.cmd.ExtraFiles = []*os.File{file, self}
	s.cmd.Env = []string{serveEnv + "=" + s.mode + ":" + s.upper}
	s.cmd.Stderr = os.Stderr
	if s.uid != 0 {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.uid, Gid: s.uid}}
	}
	out, err := s.cmd.StdoutPipe()
	must(s.t, err)
	must(s.t, s.cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		s.t.Fatal("server did not start:", line, err)
	}
}

// kill ends the server as kill -9 does, and takes away the dead mount.
func (s *served) kill() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.cmd = nil
	unix.Unmount(s.dir, unix.MNT_DETACH)
}

// TestKill kills the server at random moments: what had been answered is there afterwards, and the one operation under
// way has happened or has not.
func TestKill(t *testing.T) {
	type step struct {
		do   func(root string, i int) error
		seen func(root string, i int) bool // after it has happened
	}
	has := func(root, name string) bool { _, err := os.Lstat(filepath.Join(root, name)); return err == nil }
	content := func(root, name string) string { b, _ := os.ReadFile(filepath.Join(root, name)); return string(b) }
	steps := []step{
		{func(r string, i int) error { return os.WriteFile(fmt.Sprintf("%s/tmp/new%d", r, i), nil, 0o4711) },
			func(r string, i int) bool { return has(r, fmt.Sprintf("tmp/new%d", i)) }},
		{func(r string, i int) error { return os.Mkdir(fmt.Sprintf("%s/etc/dir%d", r, i), 0o2775) },
			func(r string, i int) bool { return has(r, fmt.Sprintf("etc/dir%d", i)) }},
		{func(r string, i int) error {
			return os.Rename(fmt.Sprintf("%s/opt%d", r, i), fmt.Sprintf("%s/opt%d", r, i+1))
		}, func(r string, i int) bool {
			if has(r, fmt.Sprintf("opt%d", i)) == has(r, fmt.Sprintf("opt%d", i+1)) {
				panic("renamed directory is at both places, or none")
			}
			return content(r, fmt.Sprintf("opt%d/app/lib/b.py", i+1)) == "b\n"
		}},
		{func(r string, i int) error {
			return os.Rename(fmt.Sprintf("%s/bin/ls%d", r, i), fmt.Sprintf("%s/bin/ls%d", r, i+1))
		}, func(r string, i int) bool {
			return !has(r, fmt.Sprintf("bin/ls%d", i)) && content(r, fmt.Sprintf("bin/ls%d", i+1)) == "#!busybox"
		}},
		{func(r string, i int) error { return os.Truncate(r+"/big", int64(1<<20-i*5000)) },
			func(r string, i int) bool {
				st, err := os.Stat(r + "/big")
				return err == nil && st.Size() <= int64(1<<20-i*5000)
			}},
		{func(r string, i int) error { return os.Symlink("x", fmt.Sprintf("%s/bin/sym%d", r, i)) },
			func(r string, i int) bool { return has(r, fmt.Sprintf("bin/sym%d", i)) }},
		{func(r string, i int) error { return os.Remove(fmt.Sprintf("%s/bin/sym%d", r, i)) },
			func(r string, i int) bool { return !has(r, fmt.Sprintf("bin/sym%d", i)) }},
	}
	for mode := range modes {
		t.Run(mode, func(t *testing.T) {
			s := serveProcess(t, mode, 0)
			must(t, os.Rename(s.dir+"/opt", s.dir+"/opt0"))
			must(t, os.Rename(s.dir+"/bin/ls", s.dir+"/bin/ls0"))
			for round := 0; round < 6; round++ {
				done := make(chan [2]int)
				go func() {
					for i := round * 1000; ; i++ {
						for j, st := range steps {
							at := i
							if j == 2 || j == 3 {
								at = i - round*1000 // they go on from where they start each time
							}
							if j == 4 {
								at = i % 200
							}
							if err := st.do(s.dir, at); err != nil {
								done <- [2]int{i, j}
								return
							}
						}
					}
				}()
				time.Sleep(time.Duration(5+round*17) * time.Millisecond)
				s.kill()
				last := <-done
				s.start()
				for j, st := range steps[:2] {
					for i := round * 1000; i < last[0]; i++ {
						if !st.seen(s.dir, i) {
							t.Fatalf("round %d: step %d of %d was answered and is not there", round, j, i)
						}
					}
				}
				n := last[0] - round*1000
				for j, name := range map[int]string{2: "opt", 3: "bin/ls"} {
					at := n
					if !has(s.dir, fmt.Sprintf("%s%d", name, at)) {
						at++
					}
					if at > n && (j > last[1]) || at == n && j < last[1] {
						t.Fatalf("round %d: %s is at %d, the server was killed at step %v", round, name, at, last)
					}
					if at > 0 && !steps[j].seen(s.dir, at-1) {
						t.Fatalf("round %d: %s%d is not whole", round, name, at)
					}
					if at > 0 {
						must(t, os.Rename(fmt.Sprintf("%s/%s%d", s.dir, name, at), fmt.Sprintf("%s/%s0", s.dir, name)))
					}
				}
			}
		})
	}
}

// TestOrdinaryUser serves from a process without privileges what root does on the mount.
func TestOrdinaryUser(t *testing.T) {
	for _, mode := range []string{"root", "wh-files"} { // what that user cannot, it finds out
		t.Run(mode, func(t *testing.T) {
			s := serveProcess(t, mode, 65534)
			for _, name := range []string{"FileBasic", "LinkUnlinkRename", "RenameOpenDir", "SetattrSymlink", "Tmpfile", "XAttr", "NlinkZero", "ReadDirBasic"} {
				dir := s.dir + "/tmp/" + name
				must(t, os.Mkdir(dir, 0o755))
				t.Run(name, func(t *testing.T) { posixtest.All[name](t, dir) })
			}
			must(t, os.Chown(s.dir+"/etc/passwd", 12, 34))
			must(t, unix.Chmod(s.dir+"/etc/passwd", 0o4711))
			must(t, os.WriteFile(s.dir+"/etc/none", []byte("0"), 0))
			must(t, os.Lchown(s.dir+"/etc/localtime", 5, 6))
			must(t, unix.Mknod(s.dir+"/dev/zero", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))))
			must(t, os.Remove(s.dir+"/dev/null"))
			must(t, os.Rename(s.dir+"/opt", s.dir+"/etc/opt"))
			must(t, unix.Setxattr(s.dir+"/etc/opt", "trusted.overlay.opaque", []byte("n"), 0))
			before := snapshot(t, s.dir)
			s.kill()
			s.start()
			after := snapshot(t, s.dir)
			wantSame(t, before, after)
			for name, want := range map[string]string{"etc/passwd": "104711 12:34 ", "etc/none": "100000 0:0 ", "etc/localtime": "120777 5:6 ", "dev/zero": "020644 0:0 rdev=261 "} {
				if !strings.HasPrefix(after[name], want) {
					t.Errorf("%s is %s, want %s", name, after[name], want)
				}
			}
		})
	}
}
