package vmboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/microsandbox/msb-fs/vmboot/virtiofs"
)

// guestImage makes a directory that is enough of an image for a guest: a static busybox and a few files.
func guestImage(t *testing.T) string {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("no static /bin/busybox for a guest: apt-get install busybox-static")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"bin/busybox":    busybox,
		"etc/passwd":     []byte("root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"),
		"etc/group":      []byte("root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n"),
		"bin/plain":      []byte("not a program\n"),
		"bin/noloader":   []byte("#!/bin/absent\n"),
		"tmp/from-image": []byte("x"),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "cat", "echo", "sleep", "kill", "true", "id", "env", "pwd", "stat", "mount", "date", "dd", "wc", "hostname", "stty", "ls", "nslookup", "wget", "nc", "ip", "sha256sum", "ps", "head", "poweroff", "reboot", "ulimit", "touch", "mkdir", "rm", "tar", "grep", "ln", "mv", "cp", "chmod", "chown", "mknod", "cmp"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// serveDir serves dir on a vhost-user-fs socket until the test is over.
func serveDir(t *testing.T, dir string) (socket string) {
	t.Helper()
	root, err := gofs.NewLoopbackRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	long := time.Hour
	raw := gofs.NewNodeFS(root, &gofs.Options{EntryTimeout: &long, AttrTimeout: &long})
	socket = filepath.Join(t.TempDir(), "fs.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	var used atomic.Bool
	go func() {
		served <- virtiofs.Serve(ctx, ln, func(context.Context) (fuse.RawFileSystem, error) { return raw, nil }, virtiofs.Options{
			FUSE: &fuse.MountOptions{MaxWrite: 128 << 10}, OnFault: func(err error) { t.Errorf("virtiofs: %v", err) },
			OnInit: func() { used.Store(true) },
		})
	}()
	t.Cleanup(func() {
		defer ln.Close()
		defer cancel()
		if !used.Load() { // a machine that never came this far may not even have connected
			cancel()
			<-served
			return
		}
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("virtiofs: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("virtiofs: still serving 10 s after the machine has ended")
			cancel()
			<-served
		}
	})
	return socket
}

// testConfig is the smallest machine, or a skip that says what it lacks.
func testConfig(t *testing.T) Config {
	t.Helper()
	if _, err := findQEMU(""); err != nil {
		t.Skip(err)
	}
	kernel, err := FindKernel("")
	if errors.Is(err, ErrNoKernel) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return Config{Kernel: kernel, MemoryMiB: 256}
}

// boot starts c over a new image and returns it with its agent; the machine ends with the test.
func boot(t *testing.T, c Config, s Setup) (*VM, *Agent) {
	t.Helper()
	if c.FSSocket == "" {
		c.FSSocket = serveDir(t, guestImage(t))
	}
	vm, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	agent, err := vm.Agent(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	return vm, agent
}

type result struct {
	Status
	out, err string
	failure  error
}

func sh(t *testing.T, a *Agent, script string) result {
	t.Helper()
	return do(t, a, Process{Args: []string{"/bin/sh", "-c", script}})
}

func do(t *testing.T, a *Agent, p Process) result {
	t.Helper()
	var out, errs bytes.Buffer
	if p.Stdout == nil {
		p.Stdout = &out
	}
	p.Stderr = &errs
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	status, err := a.Exec(ctx, p)
	return result{status, out.String(), errs.String(), err}
}

func TestGuest(t *testing.T) {
	vm, agent := boot(t, testConfig(t), Setup{Hostname: "worker", Hosts: []string{"10.9.8.7\tfriend"}, Tmpfs: []Tmpfs{{Target: "/scratch", SizeMiB: 8}}})

	t.Run("programs", func(t *testing.T) {
		for _, c := range []struct {
			name       string
			p          Process
			code       int
			signal     syscall.Signal
			out, err   string
			startError string
		}{
			{name: "output", p: Process{Args: []string{"echo", "hello"}}, out: "hello\n"},
			{name: "streams apart", p: Process{Args: []string{"sh", "-c", "echo a; echo b >&2"}}, out: "a\n", err: "b\n"},
			{name: "exit status", p: Process{Args: []string{"sh", "-c", "exit 7"}}, code: 7},
			{name: "killed", p: Process{Args: []string{"sh", "-c", "kill -9 $$"}}, code: 137, signal: 9},
			{name: "terminated", p: Process{Args: []string{"sh", "-c", "kill -15 $$"}}, code: 143, signal: 15},
			{name: "absent", p: Process{Args: []string{"nosuch"}}, code: 127, startError: "nosuch"},
			{name: "absent path", p: Process{Args: []string{"/bin/nosuch"}}, code: 127, startError: "/bin/nosuch"},
			{name: "no loader", p: Process{Args: []string{"noloader"}}, code: 127, startError: "loader"},
			{name: "not a program", p: Process{Args: []string{"plain"}}, code: 126, startError: "plain"},
			{name: "a directory", p: Process{Args: []string{"/bin"}}, code: 126, startError: "directory"},
			{name: "not executable", p: Process{Args: []string{"/etc/passwd"}}, code: 126, startError: "denied"},
			{name: "no user", p: Process{Args: []string{"true"}, User: "bob"}, code: 126, startError: "bob"},
			{name: "no directory", p: Process{Args: []string{"true"}, Dir: "/nowhere"}, code: 126, startError: "/nowhere"},
			{name: "made directory", p: Process{Args: []string{"pwd"}, Dir: "/srv/new", MakeDir: true}, out: "/srv/new\n"},
			{name: "user", p: Process{Args: []string{"sh", "-c", "id -u; id -g; id -G; echo $HOME"}, User: "alice"}, out: "1000\n1000\n1000 50\n/home/alice\n"},
			{name: "number", p: Process{Args: []string{"sh", "-c", "id -u; id -g"}, User: "4242:50"}, out: "4242\n50\n"},
			{name: "environment", p: Process{Args: []string{"sh", "-c", "echo $A-$HOME-$HOSTNAME"}, Env: []string{"A=b"}}, out: "b-/root-worker\n"},
			{name: "relative", p: Process{Args: []string{"./echo", "x"}, Dir: "/bin"}, out: "x\n"},
			{name: "no input", p: Process{Args: []string{"cat"}}},
			{name: "umask", p: Process{Args: []string{"sh", "-c", "umask"}, Umask: new(uint32(0o77))}, out: "0077\n"},
			{name: "umask default", p: Process{Args: []string{"sh", "-c", "umask"}}, out: "0022\n"},
			{name: "limits", p: Process{Args: []string{"sh", "-c", "ulimit -n; ulimit -Hn"}, Rlimits: []Rlimit{{Resource: syscall.RLIMIT_NOFILE, Soft: 100, Hard: 200}}}, out: "100\n200\n"},
			{name: "host name", p: Process{Args: []string{"sh", "-c", "hostname; cat /etc/hostname; head -n 1 /etc/hosts; grep friend /etc/hosts"}}, out: "worker\nworker\n127.0.0.1\tlocalhost\n10.9.8.7\tfriend\n"},
			{name: "tmp is the image's", p: Process{Args: []string{"ls", "/tmp"}}, out: "from-image\n"},
			{name: "tmpfs", p: Process{Args: []string{"sh", "-c", "mount | grep -c '/scratch type tmpfs.*size=8192k'"}}, out: "1\n"},
			{name: "mounts", p: Process{Args: []string{"sh", "-c", "for m in /proc /sys /dev /dev/pts /dev/shm /run /sys/fs/cgroup; do mount | grep -q \" on $m type \" || echo lacks $m; done"}}},
			{name: "agent is no file", p: Process{Args: []string{"sh", "-c", "ls -a / | grep -c msb; ls /.msb"}}, code: 1, out: "0\n", err: "ls: /.msb: No such file or directory\n"},
		} {
			t.Run(c.name, func(t *testing.T) {
				r := do(t, agent, c.p)
				var failed *StartError
				if errors.As(r.failure, &failed) != (c.startError != "") || (failed == nil && r.failure != nil) {
					t.Errorf("error %v, want a start error: %v", r.failure, c.startError != "")
				}
				if failed != nil && !strings.Contains(failed.Reason, c.startError) {
					t.Errorf("reason %q does not speak of %q", failed.Reason, c.startError)
				}
				if r.Code != c.code || r.Signal != c.signal {
					t.Errorf("ended with %d (signal %d), want %d (signal %d)", r.Code, r.Signal, c.code, c.signal)
				}
				if r.out != c.out || r.err != c.err {
					t.Errorf("said %q and %q, want %q and %q", r.out, r.err, c.out, c.err)
				}
			})
		}
	})

	t.Run("clock", func(t *testing.T) {
		before := time.Now().Add(-time.Second).Unix()
		r := sh(t, agent, "date +%s")
		var now int64
		for _, d := range strings.TrimSpace(r.out) {
			now = now*10 + int64(d-'0')
		}
		if now < before || now > time.Now().Unix()+1 {
			t.Errorf("the guest's clock says %d, the host's is at %d", now, time.Now().Unix())
		}
	})

	t.Run("10 MB through", func(t *testing.T) {
		data := make([]byte, 10<<20+123)
		rand.NewChaCha8([32]byte{1}).Read(data)
		sum := sha256.New()
		started := time.Now()
		r := do(t, agent, Process{Args: []string{"cat"}, Stdin: bytes.NewReader(data), Stdout: sum})
		t.Logf("%.1f MB/s", float64(len(data))/1e6/time.Since(started).Seconds())
		if want := sha256.Sum256(data); r.Code != 0 || r.failure != nil || !bytes.Equal(sum.Sum(nil), want[:]) {
			t.Errorf("other bytes came back (%d, %v, %q)", r.Code, r.failure, r.err)
		}
	})

	t.Run("in parallel", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				data := bytes.Repeat([]byte{byte('a' + i)}, 1<<20)
				var out bytes.Buffer
				r := do(t, agent, Process{Args: []string{"sh", "-c", "cat; echo done >&2; exit " + strconv.Itoa(i)}, Stdin: bytes.NewReader(data), Stdout: &out})
				if r.Code != i || r.err != "done\n" || !bytes.Equal(out.Bytes(), data) {
					t.Errorf("%d: ended with %d, %q, %d bytes, %v", i, r.Code, r.err, out.Len(), r.failure)
				}
			})
		}
		wg.Wait()
	})

	t.Run("copies", func(t *testing.T) {
		dir := t.TempDir()
		src := filepath.Join(dir, "src")
		if err := os.MkdirAll(filepath.Join(src, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte("0123456789"), 100_000)
		if err := os.WriteFile(filepath.Join(src, "sub", "f"), data, 0o640); err != nil {
			t.Fatal(err)
		}
		if err := agent.CopyIn(t.Context(), src, "/tmp"); err != nil {
			t.Fatal(err)
		}
		if r := sh(t, agent, "stat -c '%a %s' /tmp/src/sub/f"); r.out != "640 1000000\n" {
			t.Errorf("%q %q", r.out, r.err)
		}
		if err := agent.CopyOut(t.Context(), "/tmp/src/sub/f", filepath.Join(dir, "back")); err != nil {
			t.Fatal(err)
		}
		if back, err := os.ReadFile(filepath.Join(dir, "back")); err != nil || !bytes.Equal(back, data) {
			t.Errorf("%d bytes came back: %v", len(back), err)
		}
		for name, err := range map[string]error{
			"/tmp/nosuch":    agent.CopyOut(t.Context(), "/tmp/nosuch", dir),
			dir + "/nosuch":  agent.CopyIn(t.Context(), dir+"/nosuch", "/tmp"),
			"/nowhere/":      agent.CopyIn(t.Context(), src, "/nowhere/"),
			dir + "/nowhere": agent.CopyOut(t.Context(), "/tmp/src", dir+"/nowhere/x"),
		} {
			if err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})

	t.Run("output of a program that has ended", func(t *testing.T) {
		// The descendant keeps the pipe; what the program wrote must come, and its end at once.
		r := sh(t, agent, "sleep 1000 & echo last words")
		if r.out != "last words\n" || r.Code != 0 {
			t.Errorf("%q, %d", r.out, r.Code)
		}
	})

	t.Run("a reader that goes away", func(t *testing.T) {
		r := do(t, agent, Process{Args: []string{"sh", "-c", "while echo line; do :; done"}, Stdout: &limited{n: 1000}})
		if r.failure != nil || r.Code == 0 {
			t.Errorf("the writer ended with %d (%v), not by SIGPIPE", r.Code, r.failure)
		}
	})

	t.Run("input nobody reads", func(t *testing.T) {
		r := do(t, agent, Process{Args: []string{"true"}, Stdin: forever{}})
		if r.Code != 0 || r.failure != nil {
			t.Errorf("%d, %v", r.Code, r.failure)
		}
	})

	t.Run("signal", func(t *testing.T) {
		signals := make(chan os.Signal, 1)
		r := do(t, agent, Process{Args: []string{"sh", "-c", "trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.1; done"},
			Signals: signals, Stdout: &after{text: "ready", do: func() { signals <- syscall.SIGUSR1 }}})
		if r.Code != 3 {
			t.Errorf("%d, %v", r.Code, r.failure)
		}
	})

	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		status, err := agent.Exec(ctx, Process{Args: []string{"sleep", "1000"}, Started: cancel})
		if !errors.Is(err, context.Canceled) || status.Code != 137 {
			t.Errorf("%+v, %v", status, err)
		}
	})

	t.Run("terminal", func(t *testing.T) {
		r := do(t, agent, Process{Args: []string{"sh", "-c", "stty size; read x; echo got $x; cat; echo end"}, TTY: true,
			Size: Size{Rows: 11, Cols: 99}, Stdin: strings.NewReader("word\n")})
		if want := "got word"; r.Code != 0 || !strings.Contains(r.out, "11 99\r\n") || !strings.Contains(r.out, want) || !strings.Contains(r.out, "end\r\n") {
			t.Errorf("%d, %q, %v", r.Code, r.out, r.failure)
		}
	})

	t.Run("orphans are reaped", func(t *testing.T) {
		r := sh(t, agent, "(true & true & true &) ; sleep 0.3; ps -o stat,comm | grep -c '^Z'")
		if r.out != "0\n" {
			t.Errorf("%s zombies", r.out)
		}
	})

	t.Run("close", func(t *testing.T) {
		sh(t, agent, "echo kept > /kept")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := vm.Close(ctx, time.Second); err != nil {
			t.Error(err)
		}
		if err := vm.Err(); err != nil {
			t.Errorf("after an orderly end: %v", err)
		}
		if _, err := agent.Exec(t.Context(), Process{Args: []string{"true"}}); err == nil {
			t.Error("a closed machine runs programs")
		}
		if err := exec.Command("kill", "-0", "--", "-"+strconv.Itoa(vm.Pid())).Run(); err == nil {
			t.Error("its process is still there")
		}
	})
}

// A guest sees the host's further directories where they belong, and what it writes there is there.
func TestMounts(t *testing.T) {
	c := testConfig(t)
	shared, fixed := t.TempDir(), t.TempDir()
	for _, dir := range []string{shared, fixed} {
		if err := os.WriteFile(filepath.Join(dir, "from-host"), []byte(filepath.Base(dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.Mounts = []Mount{{Socket: serveDir(t, shared), Target: "/mnt/shared"}, {Socket: serveDir(t, fixed), Target: "/fixed", ReadOnly: true}}
	vm, agent := boot(t, c, Setup{})
	r := sh(t, agent, "cat /mnt/shared/from-host /fixed/from-host && echo yes > /mnt/shared/from-guest; echo no > /fixed/from-guest")
	if r.out != filepath.Base(shared)+filepath.Base(fixed) || !strings.Contains(r.err, "Read-only") {
		t.Errorf("%q %q", r.out, r.err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := vm.Close(ctx, 0); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(shared, "from-guest")); err != nil || string(text) != "yes\n" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(fixed, "from-guest")); err == nil {
		t.Error("the guest wrote to a read-only directory")
	}
}

// limited fails after n bytes, as a closed pipe would.
type limited struct{ n int }

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, syscall.EPIPE
	}
	return len(p), nil
}

// forever never ends and never blocks.
type forever struct{}

func (forever) Read(p []byte) (int, error) { return len(p), nil }

// after calls do once text has been written.
type after struct {
	text string
	do   func()
	seen []byte
}

func (a *after) Write(p []byte) (int, error) {
	a.seen = append(a.seen, p...)
	if a.do != nil && bytes.Contains(a.seen, []byte(a.text)) {
		a.do()
		a.do = nil
	}
	return len(p), nil
}

var _ io.Writer = (*after)(nil)
