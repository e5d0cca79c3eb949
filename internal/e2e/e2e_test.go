// Package e2e tests the programs themselves: real binaries, a real registry on loopback, real mounts and real microVMs.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// patience is how long one command may take before it counts as hung.
const patience = 3 * time.Minute

// programs are where this run's binaries are; TestMain builds them.
type programs struct{ dir string }

func (p programs) path(name string) string { return filepath.Join(p.dir, name) }

// built is set once, by TestMain, before any test runs.
var built programs

func TestMain(m *testing.M) {
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func testMain(m *testing.M) (int, error) {
	if dir := os.Getenv(asUser); dir != "" {
		built.dir = dir
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "msb-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	// Ordinary users run them as well.
	if err := os.Chmod(dir, 0o755); err != nil {
		return 1, err
	}
	built.dir = dir
	const agent = "../../vmboot/agentbin/msb-agent"
	for _, args := range [][]string{
		{"-o", agent, "../../cmd/msb-agent"},
		{"-o", dir + "/", "../../cmd/msb-fs", "../../cmd/msb-launch"},
	} {
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", "-s -w"}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	return m.Run(), nil
}

// home is one MSB_HOME and who uses it.
type home struct {
	t    *testing.T
	dir  string
	cred *syscall.Credential // nil is whoever runs the test
	env  []string            // beside the test's own
}

// newHome is an empty home whose daemon ends with the test.
func newHome(t *testing.T) *home {
	t.Helper()
	return newHomeOf(t, nil)
}

func newHomeOf(t *testing.T, cred *syscall.Credential) *home {
	t.Helper()
	// Sockets live in it, so its path must be short.
	dir, err := os.MkdirTemp("", "msb-")
	if err != nil {
		t.Fatal(err)
	}
	if cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	h := &home{t: t, dir: dir, cred: cred}
	t.Cleanup(func() {
		if r := h.fs("stop"); r.code != 0 {
			t.Errorf("stop: %v", r)
		}
		left, err := os.ReadFile("/proc/mounts")
		if err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(string(left)) {
			if strings.Contains(line, dir) {
				t.Errorf("mount left behind: %s", line)
			}
		}
		if t.Failed() {
			h.tellLogs()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return h
}

// tellLogs shows what the daemon logged, for a test that failed.
func (h *home) tellLogs() {
	filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".log") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err == nil && len(b) > 0 {
			h.t.Logf("%s:\n%s", path, b[max(0, len(b)-4000):])
		}
		return nil
	})
}

// outcome is how a command ended.
type outcome struct {
	args           []string
	stdout, stderr string
	code           int // exit status; -1 when it hung
}

func (o outcome) String() string {
	return fmt.Sprintf("%s: exit status %d\nstdout: %.2000s\nstderr: %.2000s", strings.Join(o.args, " "), o.code, o.stdout, o.stderr)
}

// fs runs msb-fs.
func (h *home) fs(args ...string) outcome { return h.run(nil, "msb-fs", args...) }

// launch runs msb-launch.
func (h *home) launch(args ...string) outcome { return h.run(nil, "msb-launch", args...) }

// command is a program of ours, prepared.
func (h *home) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, built.path(name), args...)
	cmd.Env = append(os.Environ(), "MSB_HOME="+h.dir)
	cmd.Dir = "/"
	if h.cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: h.cred}
		cmd.Env = append(cmd.Env, "HOME="+h.dir, "USER=nobody", "LOGNAME=nobody", "XDG_DATA_HOME=", "XDG_RUNTIME_DIR=")
	}
	cmd.Env = append(cmd.Env, h.env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // says where it hangs
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func (h *home) run(stdin io.Reader, name string, args ...string) outcome {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := h.command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	o := outcome{args: append([]string{name}, args...), stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if ctx.Err() != nil {
		o.code = -1
		h.t.Errorf("%s hung for %v\n%s", strings.Join(o.args, " "), patience, o.stderr)
	} else if err != nil && !errors.As(err, &exit) {
		h.t.Fatalf("%s: %v", strings.Join(o.args, " "), err)
	}
	return o
}

// must runs a command that has to work and returns what it printed.
func (h *home) must(name string, args ...string) string {
	h.t.Helper()
	o := h.run(nil, name, args...)
	if o.code != 0 {
		h.t.Fatal(o)
	}
	return o.stdout
}

// serve starts a registry that ends with the test.
func serve(t *testing.T, o registry.Options) *registry.Server {
	t.Helper()
	s, err := registry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// pythonImage puts the real image into s and returns its reference and layout. It needs mmdebstrap the first time.
func pythonImage(t *testing.T, s *registry.Server, form testimage.Form) (ref, layout string) {
	t.Helper()
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("mmdebstrap is not installed")
	}
	dir, err := testimage.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	layout, err = testimage.Python().Layout(t.Context(), dir, form, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	name := "test/python:" + string(form)
	if _, err := s.AddLayout(name, layout); err != nil {
		t.Fatal(err)
	}
	return s.Host() + "/" + name, layout
}

// smallImage puts an image of a shell and a few files into s. It needs busybox.
func smallImage(t *testing.T, s *registry.Server, form testimage.Form) string {
	t.Helper()
	img := busyboxImage(t, form)
	name := "test/small:" + string(form)
	if _, err := s.AddImage(name, img); err != nil {
		t.Fatal(err)
	}
	return s.Host() + "/" + name
}

func busyboxImage(t *testing.T, form testimage.Form) v1.Image {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("busybox-static is not installed: " + err.Error())
	}
	entries := []testimage.Entry{
		testimage.Dir("bin", 0o755), testimage.Executable("bin/busybox", string(busybox)),
		testimage.Dir("etc", 0o755), testimage.File("etc/debian_version", "12.0\n"),
		testimage.File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
		testimage.File("etc/group", "root:x:0:\nuser:x:1000:\n"),
		testimage.Dir("opt", 0o755), testimage.File("opt/file", "in opt\n"), testimage.Dir("tmp", 0o1777),
		testimage.Dir("root", 0o700), testimage.Dir("dev", 0o755), testimage.Dir("proc", 0o755), testimage.Dir("sys", 0o755),
		testimage.Executable("bin/not-executable", "").Perm(0o644),
	}
	for _, applet := range strings.Fields("sh cat echo rm mv ls id pwd env sleep kill test mkdir sha256sum wc head dd true false stat find mount df hostname ln chmod touch sync tty stty grep") {
		entries = append(entries, testimage.Symlink("bin/"+applet, "busybox"))
	}
	base, err := testimage.NewLayer(form, entries...)
	if err != nil {
		t.Fatal(err)
	}
	top, err := testimage.NewLayer(form, testimage.Dir("app", 0o755), testimage.File("app/data", "data\n"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Image(testimage.Config{
		Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin", "FROM_IMAGE=yes"}, WorkingDir: "/app",
	}, base, top)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// needVM skips where a machine cannot be started at all, and says what is missing.
func needVM(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86 is not installed")
	}
}

// needRoot skips tests that only root can run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
}
