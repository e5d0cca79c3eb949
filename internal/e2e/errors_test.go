package e2e

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestWaitsAreTold has a registry take connections and say nothing: people hear whom a sandbox waits for, unless they want to hear
// nothing, and can put an end to it.
func TestWaitsAreTold(t *testing.T) {
	needVM(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	host := silent.Addr().String()
	for _, args := range [][]string{{"run"}, {"create"}, {"run", "-d"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			h := newHome(t)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := h.command(ctx, "msb-launch", append(args, "--insecure", host+"/a", "true")...)
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			said := bufio.NewReader(stderr)
			if line, err := said.ReadString('\n'); err != nil || !strings.Contains(line, host) {
				t.Errorf("%q, %v; want a note of %s", line, err, host)
			}
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
			rest, err := io.ReadAll(said)
			if err != nil {
				t.Error(err)
			}
			want := map[string]int{"run": 125, "create": 1}[args[0]]
			if cmd.Wait(); cmd.ProcessState.ExitCode() != want || !strings.Contains(string(rest), "interrupted") {
				t.Errorf("%v, %q; want exit status %d", cmd.ProcessState, rest, want)
			}
		})
	}
}

// TestErrorsSayWhatToDo breaks everything a user may have broken: one line that says what is wrong, 1 of msb-fs and 125 of
// msb-launch, and nothing left behind (which the home's cleanup checks).
func TestErrorsSayWhatToDo(t *testing.T) {
	open := serve(t, registry.Options{})
	smallImage(t, open, testimage.Gzip)
	locked := serve(t, registry.Options{Auth: registry.Auth{Username: "u", Password: "p"}})
	if _, err := locked.AddImage("a", busyboxImage(t, testimage.Gzip)); err != nil {
		t.Fatal(err)
	}
	lying := serve(t, registry.Options{})
	lied := smallImage(t, lying, testimage.Gzip)
	lying.Inject(registry.Match{Op: registry.Blob}, registry.FlipByte(100))
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()

	for _, c := range []struct {
		name, ref string
		says      []string // any of them, in lower case
	}{
		{"no such image", open.Host() + "/no/such:image", []string{"not found", "unknown", "no such"}},
		{"no such tag", open.Host() + "/test/small:nope", []string{"not found", "unknown", "no such"}},
		{"not a name", "UPPER//case::", []string{"reference", "name"}},
		{"unreachable", nobody.Addr().String() + "/a", []string{"connect", "reach", "refused"}},
		{"unauthorized", locked.Host() + "/a", []string{"login", "credentials"}},
		{"digest mismatch", lied, []string{"digest", "corrupt"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHome(t)
			h.expect(1, c.says, "msb-fs", "pull", "--insecure", c.ref)
			h.expect(1, c.says, "msb-fs", "cat", "--insecure", c.ref, "/bin/busybox")
			if os.Getuid() == 0 && c.name != "digest mismatch" { // which a streaming mount can only meet later
				h.expect(1, c.says, "msb-fs", "mount", "--insecure", c.ref, t.TempDir())
			}
			needVM(t)
			h.expect(125, c.says, "msb-launch", "run", "--insecure", c.ref, "true")
			if left := processesOf(t, h.dir, "qemu-system-x86"); len(left) > 0 {
				t.Errorf("left running: %v", left)
			}
			if left, _ := filepath.Glob(filepath.Join(h.dir, "sandboxes", "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestMissingPartsAreNamed takes QEMU or the kernel away.
func TestMissingPartsAreNamed(t *testing.T) {
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	h.env = []string{"PATH=/nonexistent"}
	h.expect(125, []string{"qemu"}, "msb-launch", "run", "--insecure", ref, "true")
	h.env = nil
	h.expect(125, []string{"kernel"}, "msb-launch", "run", "--insecure", "--kernel", "/nonexistent/vmlinux", ref, "true")
}

// TestUsage gives command lines that cannot be meant.
func TestUsage(t *testing.T) {
	h := newHome(t)
	for _, args := range [][]string{
		{"msb-fs", "no-such-command"}, {"msb-fs", "mount", "only-one"}, {"msb-fs", "pull", "--policy", "sometimes", "a"},
		{"msb-launch", "run"}, {"msb-launch", "run", "--no-such-flag", "a"},
	} {
		if o := h.run(nil, args[0], args[1:]...); o.code != 2 || o.stdout != "" {
			t.Errorf("want exit status 2: %v", o)
		}
	}
}

// expect runs a command that has to fail with a status and one line that says one of says.
func (h *home) expect(code int, says []string, name string, args ...string) {
	h.t.Helper()
	o := h.run(nil, name, args...)
	said := false
	for _, s := range says {
		said = said || strings.Contains(strings.ToLower(o.stderr), s)
	}
	if o.code != code || o.stdout != "" || !said || strings.Count(strings.TrimSpace(o.stderr), "\n") > 0 {
		h.t.Errorf("want exit status %d and one line that says one of %q: %v", code, says, o)
	}
}

// TestOrdinaryUser mounts an image and runs a sandbox as nobody.
func TestOrdinaryUser(t *testing.T) {
	needRoot(t) // to become somebody else
	if fi, err := os.Stat("/dev/fuse"); err != nil || fi.Mode().Perm()&0o006 != 0o006 {
		t.Skip("/dev/fuse is not open to everybody, as udev makes it: chmod 666 /dev/fuse")
	}
	const nobody = 65534
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.EStargz)
	h := newHomeOf(t, &syscall.Credential{Uid: nobody, Gid: nobody})
	if out := h.must("msb-fs", "cat", "--insecure", ref, "/etc/debian_version"); out != "12.0\n" {
		t.Errorf("cat: %q", out)
	}
	mnt := filepath.Join(h.dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(mnt, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	h.must("msb-fs", "mount", "--insecure", "--ro", ref, mnt)
	if out := h.must("msb-fs", "mounts"); !strings.Contains(out, mnt) {
		t.Errorf("mounts: %q", out)
	}
	h.must("msb-fs", "umount", mnt)

	needVM(t)
	out := h.must("msb-launch", "run", "--insecure", ref, "sh", "-c", "id -u; echo x > /etc/new; chmod 600 /etc/new; rm /etc/debian_version; cat /etc/new; ls /etc")
	if want := "0\nx\ngroup\nnew\npasswd\n"; out != want && !strings.HasPrefix(out, "0\nx\n") {
		t.Errorf("it printed %q, want %q", out, want)
	}
	if strings.Contains(out, "debian_version") {
		t.Errorf("a deleted file is listed: %q", out)
	}
}
