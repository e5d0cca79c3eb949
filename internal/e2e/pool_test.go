package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// pool is `msb-launch pool` of one VM.
type pool struct {
	t      *testing.T
	home   *home
	cmd    *exec.Cmd
	states chan string // its lines on standard error
}

func (h *home) pool() *pool {
	h.t.Helper()
	p := &pool{t: h.t, home: h, cmd: h.command(context.Background(), "msb-launch", "pool", "--size", "1"), states: make(chan string, 100)}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() {
		defer close(p.states)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.states <- lines.Text()
		}
	}()
	h.t.Cleanup(p.kill)
	return p
}

// kill ends the pool as nothing can be helped against.
func (p *pool) kill() {
	p.cmd.Process.Kill()
	for range p.states {
	}
	p.cmd.Wait()
}

// ready waits until there is a VM.
func (p *pool) ready() {
	p.t.Helper()
	for late := time.After(patience); ; {
		select {
		case line, ok := <-p.states:
			if !ok {
				p.t.Fatal("the pool has ended")
			}
			if line == "pool: 1 of 1 ready" {
				return
			}
		case <-late:
			p.t.Fatal("the pool has no VM ready")
		}
	}
}

// sockets are where VMs wait.
func (p *pool) sockets() []string {
	found, _ := filepath.Glob(filepath.Join(p.home.dir, "run", "pool", "*.vm"))
	return found
}

// where says what --timing-json of a run of args says of the pool.
func (h *home) where(args ...string) (where string, o outcome) {
	h.t.Helper()
	file := filepath.Join(h.t.TempDir(), "timing")
	o = h.launch(append([]string{"run", "--timing-json", file}, args...)...)
	var timing struct{ Pool string }
	if b, err := os.ReadFile(file); err != nil || json.Unmarshal(b, &timing) != nil {
		h.t.Errorf("no timing: %v; %v", err, o)
	}
	return timing.Pool, o
}

const pooled = "a VM of the pool"

// TestPool starts sandboxes in VMs that were booted before.
func TestPool(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	if where, o := h.where("--insecure", ref, "true"); where != "" || o.code != 0 {
		t.Fatalf("without a pool: %q, %v", where, o)
	}
	p := h.pool()

	p.ready()
	where, o := h.where(ref, "sh", "-c", "cat /opt/file; echo err >&2; echo x >/tmp/mine; exit 7")
	if where != pooled || o.code != 7 || o.stdout != "in opt\n" || o.stderr != "err\n" {
		t.Errorf("%q, %v", where, o)
	}
	p.ready() // another one
	if where, o := h.where("--net", "none", ref, "sh", "-c", "ls /tmp; test ! -e /sys/class/net/eth0 || cat /sys/class/net/eth0/flags"); where != pooled || strings.Contains(o.stdout, "mine") || !strings.HasPrefix(o.stdout+"0x1002", "0x1002") {
		t.Errorf("the second sandbox: %q, %v", where, o)
	}
	p.ready()
	if where, o := h.where("-m", "300M", ref, "echo", "own"); where == pooled || where == "" || o.stdout != "own\n" {
		t.Errorf("one that no VM of the pool is like: %q, %v", where, o)
	}

	// A VM whose process was killed is not waited for.
	sockets := p.sockets()
	if len(sockets) != 1 {
		t.Fatalf("sockets: %v", sockets)
	}
	stale := sockets[0] + "x"
	if err := os.Link(sockets[0], stale); err != nil {
		t.Fatal(err)
	}
	must(t, os.Rename(stale, strings.TrimSuffix(sockets[0], ".vm")+"0.vm"))
	if where, o := h.where(ref, "echo", "first"); where != pooled || o.stdout != "first\n" {
		t.Errorf("%q, %v", where, o)
	}
	if where, o := h.where(ref, "echo", "second"); o.stdout != "second\n" {
		t.Errorf("after a VM was used by a name that is left: %q, %v", where, o)
	}
	p.ready()

	// A sandbox outlives its pool, and a VM that nobody has taken does not.
	cmd := h.command(context.Background(), "msb-launch", "run", ref, "sh", "-c", "echo up; cat; echo end")
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "up\n" {
		t.Errorf("%q, %v", line, err)
	}
	p.ready()
	p.kill()
	gone(t, "a socket of the pool", func() bool { return len(p.sockets()) == 0 })
	io.WriteString(in, "still\n")
	in.Close()
	if rest, err := io.ReadAll(lines); string(rest) != "still\nend\n" || err != nil {
		t.Errorf("after the pool was killed: %q, %v", rest, err)
	}
	must(t, cmd.Wait())
}

// TestPooledSandboxEndsWithItsLauncher kills a launcher whose sandbox is in a VM of the pool.
func TestPooledSandboxEndsWithItsLauncher(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	p := h.pool()
	p.ready()
	cmd := h.command(context.Background(), "msb-launch", "run", "--insecure", "--name", "one", ref, "sh", "-c", "echo up; sleep 1000")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Errorf("%q, %v", line, err)
	}
	must(t, cmd.Process.Signal(syscall.SIGKILL))
	cmd.Wait()
	gone(t, "the sandbox of a launcher that was killed", func() bool {
		return h.launch("rm", "one").code == 0
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gone waits until there is no more of what.
func gone(t *testing.T, what string, over func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !over(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s is left", what)
		}
	}
}
