//go:build long

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestTwentyAtOnce starts twenty sandboxes at the same time: all of them come up, and all answer.
func TestTwentyAtOnce(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	const n = 20
	var all sync.WaitGroup
	begin := time.Now()
	for i := range n {
		all.Go(func() {
			name := fmt.Sprint("s", i)
			if o := h.launch("run", "-d", "--insecure", "--name", name, ref, "sleep", "100000"); o.code != 0 {
				t.Error(o)
				return
			}
			if o := h.launch("exec", name, "hostname"); o.code != 0 || o.stdout != name+"\n" {
				t.Error(o)
			}
		})
	}
	all.Wait()
	t.Logf("%d sandboxes in %v", n, time.Since(begin))
	if got := strings.Fields(h.must("msb-launch", "ls", "-q")); len(got) != n {
		t.Errorf("%d of %d run: %v", len(got), n, got)
	}
	for i := range n {
		all.Go(func() { h.must("msb-launch", "rm", "-f", fmt.Sprint("s", i)) })
	}
	all.Wait()
	h.wantNothingLeft()
}

// wantNothingLeft fails when sandboxes, their processes or their sockets are still there.
func (h *home) wantNothingLeft() {
	h.t.Helper()
	if left := h.must("msb-launch", "ls", "-aq"); left != "" {
		h.t.Errorf("sandboxes left: %s", left)
	}
	for _, name := range []string{"qemu-system-x86", "msb-launch"} {
		if left := processesOf(h.t, h.dir, name); len(left) > 0 {
			h.t.Errorf("left running: %v", left)
		}
	}
	for _, pattern := range []string{"run/ctl-*", "run/sb-*", "sandboxes/*", "sandboxes/.*"} {
		left, err := filepath.Glob(filepath.Join(h.dir, pattern))
		if err != nil || len(left) > 0 {
			h.t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

// TestRacingCommands has several users do everything to the same three sandboxes, 200 commands in all: each command ends, with a
// status that means something, and in the end nothing is left.
func TestRacingCommands(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	h.must("msb-fs", "pull", "--insecure", ref)
	const commands, users = 200, 4
	next := make(chan int)
	var all sync.WaitGroup
	for range users {
		all.Go(func() {
			for range next {
				name := "s" + strconv.Itoa(rand.IntN(3))
				var o outcome
				switch rand.IntN(10) {
				case 0, 1:
					o = h.launch("create", "--name", name, ref, "sleep", "100000")
				case 2, 3, 4:
					o = h.launch("start", name)
				case 5:
					o = h.launch("stop", "--grace", "2s", name)
				case 6:
					o = h.launch("restart", "--grace", "0s", name)
				case 7:
					o = h.launch("rm", "-f", name)
				case 8:
					o = h.launch("exec", name, "sh", "-c", "echo x; sleep 0."+strconv.Itoa(rand.IntN(9)))
				default:
					if o = h.launch("ls", "-a"); o.code != 0 {
						t.Error(o)
					}
				}
				// All may lose a race, which is 1, or 125 of exec; nobody may hang or crash. A command whose sandbox is stopped meanwhile is
				// killed, and that is its status.
				if o.code != 0 && o.code != 1 && o.code != 125 && o.code != 137 && o.code != 143 {
					t.Error(o)
				}
				if (o.code == 1 || o.code == 125) && (strings.Count(strings.TrimSpace(o.stderr), "\n") > 0 || !strings.Contains(o.stderr, "msb-launch: ")) {
					t.Errorf("it does not say in one line what it is about: %v", o)
				}
			}
		})
	}
	for i := range commands {
		next <- i
	}
	close(next)
	all.Wait()
	for i := range 3 {
		h.launch("rm", "-f", "s"+strconv.Itoa(i))
	}
	h.wantNothingLeft()
}

// TestKillsAtRandom kills whatever keeps a sandbox running: a second later ls says that it does not run, nothing of it is
// left, and it starts again with all that it had written and synced.
func TestKillsAtRandom(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	h.must("msb-launch", "create", "--name", "victim", "--insecure", ref, "sleep", "100000")
	for round := range 12 {
		if o := h.launch("start", "victim"); o.code != 0 {
			t.Fatal(o)
		}
		want := ""
		for i := range round {
			want += fmt.Sprintln(i)
		}
		if got := h.must("msb-launch", "exec", "victim", "sh", "-c", "touch /data; cat /data; echo "+strconv.Itoa(round)+" >> /data; sync"); got != want {
			t.Fatalf("round %d: %q, want %q", round, got, want)
		}
		var who string
		var pid int
		switch round % 3 {
		case 0:
			who, pid = "daemon", h.status().PID
		case 1:
			who, pid = "supervisor", h.supervisor("victim")
		default:
			who, pid = "QEMU", firstPid(t, processesOf(t, h.dir, "qemu-system-x86"))
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("kill %s: %v", who, err)
		}
		time.Sleep(time.Second)
		var list []struct{ Name, Status string }
		if err := json.Unmarshal([]byte(h.must("msb-launch", "ls", "-a", "--json")), &list); err != nil {
			t.Fatal(err)
		}
		if len(list) != 1 || list[0].Status == "running" {
			t.Errorf("a second after %s was killed: %+v", who, list)
		}
		if left := processesOf(t, h.dir, "qemu-system-x86"); len(left) > 0 {
			t.Errorf("a second after %s was killed: %v", who, left)
		}
	}
	h.must("msb-launch", "rm", "victim")
	h.wantNothingLeft()
}

func (h *home) supervisor(name string) int {
	h.t.Helper()
	var info struct {
		State struct {
			PID int `json:"pid"`
		} `json:"state"`
	}
	if err := json.Unmarshal([]byte(h.must("msb-launch", "inspect", name)), &info); err != nil {
		h.t.Fatal(err)
	}
	return info.State.PID
}

func firstPid(t *testing.T, processes []string) int {
	t.Helper()
	if len(processes) == 0 {
		t.Fatal("no such process")
	}
	pid, err := strconv.Atoi(strings.Fields(processes[0])[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestGigabyteThroughPipes sends a gigabyte through an exec's standard input and output: every byte arrives.
func TestGigabyteThroughPipes(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	h.must("msb-launch", "run", "-d", "--name", "pipe", "--insecure", ref, "sleep", "100000")
	defer h.must("msb-launch", "rm", "-f", "pipe")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const size = 1 << 30
	sent, got := sha256.New(), sha256.New()
	cmd := h.command(ctx, "msb-launch", "exec", "-i", "pipe", "cat")
	cmd.Stdin = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent)
	counted := &counter{w: got}
	cmd.Stdout = counted
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f MB/s", size/1e6/time.Since(begin).Seconds())
	if counted.n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%d bytes came back of %d, with the same digest: %v", counted.n, size, bytes.Equal(sent.Sum(nil), got.Sum(nil)))
	}
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}

// TestStalledReader has one exec's output not read: others in the same sandbox go on, and it goes on when it is read.
func TestStalledReader(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	h.must("msb-launch", "run", "-d", "--name", "busy", "--insecure", ref, "sleep", "100000")
	defer h.must("msb-launch", "rm", "-f", "busy")
	stalled := h.command(t.Context(), "msb-launch", "exec", "busy", "sh", "-c", "head -c 30000000 /dev/zero; exit 9")
	out, err := stalled.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stalled.Start(); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if o := h.launch("exec", "busy", "sh", "-c", "head -c 1000000 /dev/zero | wc -c; exit "+strconv.Itoa(i)); o.code != i || o.stdout != "1000000\n" {
				t.Error(o)
			}
		})
	}
	all.Wait()
	n, err := io.Copy(io.Discard, out)
	var exit *exec.ExitError
	if werr := stalled.Wait(); n != 30000000 || err != nil || !errors.As(werr, &exit) || exit.ExitCode() != 9 {
		t.Errorf("%d bytes, %v, %v", n, err, werr)
	}
}

// TestFullUpper fills what a sandbox may write: its programs see a full disk, and it stops and starts all the same.
func TestFullUpper(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	h.must("msb-launch", "run", "-d", "--name", "full", "--upper-size", "8M", "--insecure", ref, "sleep", "100000")
	if o := h.launch("exec", "full", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=20"); o.code == 0 || !strings.Contains(o.stderr, "No space left") {
		t.Error(o)
	}
	h.must("msb-launch", "stop", "full")
	h.must("msb-launch", "start", "full")
	if out := h.must("msb-launch", "exec", "full", "sh", "-c", "rm /big && echo x > /small && cat /small"); out != "x\n" {
		t.Errorf("%q", out)
	}
	h.must("msb-launch", "rm", "-f", "full")
}

// TestSecretsAreNotKept starts a sandbox with a registry's password and looks for it everywhere.
func TestSecretsAreNotKept(t *testing.T) {
	needVM(t)
	const password = "hunter2-is-not-kept"
	s := serve(t, registry.Options{Auth: registry.Auth{Username: "u", Password: password}})
	if _, err := s.AddImage("a", busyboxImage(t, testimage.Gzip)); err != nil {
		t.Fatal(err)
	}
	h := newHome(t)
	if o := h.run(strings.NewReader(password+"\n"), "msb-launch", "run", "-d", "--name", "x", "--insecure", "--username", "u", "--password-stdin", s.Host()+"/a", "sleep", "100000"); o.code != 0 {
		t.Fatal(o)
	}
	defer h.must("msb-launch", "rm", "-f", "x")
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	self := filepath.Join("/proc", strconv.Itoa(os.Getpid()))
	for _, p := range processes {
		for _, name := range []string{"cmdline", "environ"} {
			if b, err := os.ReadFile(filepath.Join(p, name)); err == nil && p != self && bytes.Contains(b, []byte(password)) {
				t.Errorf("the password is in %s/%s", p, name)
			}
		}
	}
	h.must("msb-fs", "stop") // so that its database is written
	err = filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(password)) {
			t.Errorf("the password is in %s", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
