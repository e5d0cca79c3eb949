package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestExitStatus runs commands that end in every way.
func TestExitStatus(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	for _, c := range []struct {
		name string
		args []string
		code int
		out  string
	}{
		{"status 7", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"killed", []string{"sh", "-c", "kill -KILL $$"}, 128 + 9, ""},
		{"terminated", []string{"sh", "-c", "kill -TERM $$"}, 128 + 15, ""},
		{"not found", []string{"no-such-command"}, 127, ""},
		{"not executable", []string{"/bin/not-executable"}, 126, ""},
		{"output and environment", []string{"sh", "-c", "echo $FROM_IMAGE; pwd; echo no >&2"}, 0, "yes\n/app\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := h.launch(append([]string{"run", "--insecure", ref}, c.args...)...)
			if o.code != c.code || o.stdout != c.out {
				t.Errorf("want status %d and %q; %v", c.code, c.out, o)
			}
			if c.code == 0 && strings.TrimSpace(o.stderr) != "no" {
				t.Errorf("stderr is not the command's alone: %q", o.stderr)
			}
		})
	}
}

// TestStdinToStdout sends 10 MB through a sandbox.
func TestStdinToStdout(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.EStargz)
	h := newHome(t)
	in := make([]byte, 10_000_000)
	rand.Read(in)
	o := h.run(bytes.NewReader(in), "msb-launch", "run", "--insecure", ref, "cat")
	if o.code != 0 || !bytes.Equal([]byte(o.stdout), in) {
		t.Errorf("status %d, %d bytes came back of %d; %s", o.code, len(o.stdout), len(in), o.stderr)
	}
}

// TestGuestWrites changes files in a sandbox: they land in its upper, and another sandbox of the image sees none of it.
func TestGuestWrites(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	h.must("msb-launch", "run", "--insecure", "--name", "one", ref, "sh", "-c",
		"echo x > /etc/new && rm /etc/debian_version && mv /opt /opt2 && cat /opt2/file && sync")
	upper := filepath.Join(h.dir, "sandboxes", "one", "upper")
	found := false
	filepath.WalkDir(upper, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if b, err := os.ReadFile(path); err == nil && string(b) == "x\n" {
				found = true
			}
		}
		return nil
	})
	if !found {
		t.Errorf("no file below %s holds what was written to /etc/new", upper)
	}
	if out := h.must("msb-launch", "run", "--insecure", ref, "sh", "-c",
		"ls /etc/new /opt2 2>/dev/null; cat /etc/debian_version /opt/file"); out != "12.0\nin opt\n" {
		t.Errorf("another sandbox of the image sees %q", out)
	}
	// The first one still has it, after a restart as well.
	h.must("msb-launch", "start", "one")
	if out := h.must("msb-launch", "exec", "one", "cat", "/etc/new", "/opt2/file"); out != "x\nin opt\n" {
		t.Errorf("the sandbox sees %q", out)
	}
	h.must("msb-launch", "stop", "one")
	h.must("msb-launch", "rm", "one")
	if _, err := os.Stat(filepath.Join(h.dir, "sandboxes", "one")); err == nil {
		t.Error("a removed sandbox is still there")
	}
}

// TestSecondRunWithoutRegistry runs an image again when its registry has gone: no network at all.
func TestSecondRunWithoutRegistry(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	first := h.must("msb-launch", "run", "--insecure", ref, "cat", "/etc/debian_version")
	h.waitComplete()
	s.Down()
	if again := h.must("msb-launch", "run", "--insecure", ref, "cat", "/etc/debian_version"); again != first {
		t.Errorf("first %q, again %q", first, again)
	}
	h.must("msb-fs", "stop")
	if again := h.must("msb-launch", "run", ref, "cat", "/etc/debian_version"); again != first {
		t.Errorf("first %q, with a new daemon %q", first, again)
	}
	if o := h.launch("run", "--insecure", "--pull", "always", ref, "true"); o.code != 125 || !strings.Contains(o.stderr, "--pull if-missing") {
		t.Errorf("--pull always without the registry: %v", o)
	}
	if o := h.launch("run", "--pull", "never", s.Host()+"/test/other", "true"); o.code != 125 || !strings.Contains(o.stderr, "image not cached") {
		t.Errorf("--pull never of an unknown image: %v", o)
	}
}

// TestSandboxesAndMountShare has two sandboxes and a mount of one image at the same time: one daemon, one cache, and
// every byte of it fetched at most once.
func TestSandboxesAndMountShare(t *testing.T) {
	needVM(t)
	needRoot(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	mnt := t.TempDir()
	h.must("msb-fs", "mount", "--insecure", "--ro", ref, mnt)
	defer h.must("msb-fs", "umount", mnt)
	pid := h.status().PID
	type running struct {
		wait func() error
		out  *bytes.Buffer
		in   func()
	}
	var all []running
	for range 2 {
		cmd := h.command(ctx, "msb-launch", "run", "--insecure", ref, "sh", "-c", "cat /etc/debian_version; cat")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill()
		all = append(all, running{cmd.Wait, &out, func() { in.Close() }})
	}
	if b, err := os.ReadFile(filepath.Join(mnt, "etc/debian_version")); err != nil || string(b) != "12.0\n" {
		t.Errorf("mounted: %q, %v", b, err)
	}
	for until := time.Now().Add(patience); h.status().Sandboxes < 2; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("two sandboxes never ran side by side: %+v", h.status())
		}
	}
	if st := h.status(); st.PID != pid {
		t.Errorf("daemon %d, before %d", st.PID, pid)
	}
	for _, r := range all {
		r.in()
	}
	for _, r := range all {
		if err := r.wait(); err != nil || r.out.String() != "12.0\n" {
			t.Errorf("%v, %q", err, r.out)
		}
	}
	size := h.image(ref).Size
	if got := s.Stats().Bytes; got > size+size/4+50_000 {
		t.Errorf("%d bytes were fetched of an image of %d", got, size)
	}
}

// TestKilledLauncherLeavesNothing kills a launcher that cannot clean up after itself.
func TestKilledLauncherLeavesNothing(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	cmd := h.command(t.Context(), "msb-launch", "run", "--insecure", ref, "sh", "-c", "echo up; sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for until := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		left := processesOf(t, h.dir, "qemu-system-x86")
		if h.status().Sandboxes == 0 && len(left) == 0 {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("still there: %v, %+v", left, h.status())
		}
	}
}

// processesOf lists processes of a name whose arguments mention dir.
func processesOf(t *testing.T, dir, name string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range all {
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "comm"))
		args, _ := os.ReadFile(p)
		if strings.TrimSpace(string(comm)) == name && strings.Contains(string(args), dir) {
			out = append(out, filepath.Base(filepath.Dir(p))+" "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return out
}

// status is what `msb-fs status` says.
type status struct {
	PID       int      `json:"pid"`
	Sandboxes int      `json:"sandboxes"`
	Fetching  []string `json:"fetching"`
}

func (h *home) status() status {
	h.t.Helper()
	var st status
	if err := json.Unmarshal([]byte(h.must("msb-fs", "status", "--format", "json")), &st); err != nil {
		h.t.Fatal(err)
	}
	return st
}

// imageInfo is what `msb-fs inspect` says of an image.
type imageInfo struct {
	Size   int64 `json:"size"`
	Layers []struct {
		Size int64  `json:"size"`
		Have int64  `json:"have"`
		Mode string `json:"mode"`
	} `json:"layers"`
}

func (h *home) image(ref string) imageInfo {
	h.t.Helper()
	var i imageInfo
	if err := json.Unmarshal([]byte(h.must("msb-fs", "inspect", "--format", "json", ref)), &i); err != nil {
		h.t.Fatal(err)
	}
	return i
}

// waitComplete returns when the daemon has nothing more to fetch of any image.
func (h *home) waitComplete() {
	h.t.Helper()
	for until := time.Now().Add(patience); len(h.status().Fetching) > 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(until) {
			h.t.Fatalf("%v is still being fetched", h.status().Fetching)
		}
	}
}
