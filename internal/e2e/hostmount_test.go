package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestMountPoints mounts on directories as people have them, and on what is none.
func TestMountPoints(t *testing.T) {
	needRoot(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	for _, name := range []string{"with space", "two\nlines", `back\slash`, "tab\there", "-dash", "ünï\"'$(x)", strings.Repeat("l", 200), "full"} {
		dir := filepath.Join(h.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "full" {
			if err := os.WriteFile(dir+"/below", []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		h.must("msb-fs", "mount", "--insecure", ref, dir)
		if b, err := os.ReadFile(dir + "/etc/debian_version"); err != nil || string(b) != "12.0\n" {
			t.Errorf("%q: %q, %v", name, b, err)
		}
		if o := h.fs("mount", "--insecure", ref, dir); o.code != 1 || strings.Count(strings.TrimSpace(o.stderr), "\n") > strings.Count(name, "\n")*4 {
			t.Errorf("twice on %q: %v", name, o)
		}
		if out := h.must("msb-fs", "mounts", "--format", "json"); !strings.Contains(out, "debian") && !strings.Contains(out, ref) {
			t.Errorf("mounts: %s", out)
		}
		h.must("msb-fs", "umount", dir)
		if o := h.fs("umount", dir); o.code != 1 || !strings.Contains(o.stderr, "nothing of ours is mounted") {
			t.Errorf("unmounted twice: %v", o)
		}
		if _, err := os.Stat(dir + "/etc"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q is still mounted: %v", name, err)
		}
	}
	if b, err := os.ReadFile(h.dir + "/full/below"); err != nil || string(b) != "kept" {
		t.Errorf("what was below a mount: %q, %v", b, err)
	}
	if err := os.WriteFile(h.dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{h.dir + "/missing", h.dir + "/file", h.dir + "/file/below", "", "/"} {
		if o := h.fs("mount", "--insecure", ref, bad); o.code == 0 || strings.Count(o.stderr, "\n") != 1 {
			t.Errorf("on %q: %v", bad, o)
		}
	}
}

// TestBusyMount unmounts what is in use: it stays, and the user is named; detached, it goes.
func TestBusyMount(t *testing.T) {
	needRoot(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.EStargz)
	h := newHome(t)
	mnt := t.TempDir()
	h.must("msb-fs", "mount", "--insecure", ref, mnt)
	user := exec.Command("sh", "-c", `cd "$0"; echo; exec sleep 1000`, mnt)
	out, err := user.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		user.Process.Kill()
		user.Wait()
	}()
	out.Read(make([]byte, 1))
	o := h.fs("umount", mnt)
	if o.code != 1 || !strings.Contains(o.stderr, fmt.Sprintf("(%d)", user.Process.Pid)) || !strings.Contains(o.stderr, "--lazy") {
		t.Errorf("in use: %v", o)
	}
	if _, err := os.Stat(mnt + "/etc/passwd"); err != nil {
		t.Errorf("after that it is gone: %v", err)
	}
	h.must("msb-fs", "umount", "--lazy", mnt)
	if _, err := os.Stat(mnt + "/etc"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("detached, it is there: %v", err)
	}
}

// TestStatusFiles reads what a mount says of itself.
func TestStatusFiles(t *testing.T) {
	needRoot(t)
	s := serve(t, registry.Options{})
	h := newHome(t)
	ref := smallImage(t, s, testimage.EStargz)
	for _, args := range [][]string{nil, {"--upper", h.dir + "/upper"}} {
		mnt := t.TempDir()
		h.must("msb-fs", append(append([]string{"mount", "--insecure"}, args...), ref, mnt)...)
		for name, want := range map[string]string{"image": ref, "layers": "lazy-toc", "stats.json": `"bytes_fetched"`, "progress": " of "} {
			b, err := os.ReadFile(filepath.Join(mnt, ".msb-fs", name))
			if err != nil || !strings.Contains(string(b), want) && !strings.Contains(string(b), "full") {
				t.Errorf("%s: %q, %v", name, b, err)
			}
		}
		es, err := os.ReadDir(mnt)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if strings.HasPrefix(e.Name(), ".msb") {
				t.Errorf("%s is listed", e.Name())
			}
		}
		h.waitComplete()
		b, err := os.ReadFile(filepath.Join(mnt, ".msb-fs", "progress"))
		var have, all int64
		if _, scan := fmt.Sscanf(string(b), "%d of %d", &have, &all); err != nil || scan != nil || have != all || all == 0 {
			t.Errorf("at the end: %q, %v", b, err)
		}
		h.must("msb-fs", "umount", mnt)
	}
}

// TestKilledDaemonLeavesNoMounts kills a daemon that has mounts: the next one cleans up, and says so.
func TestKilledDaemonLeavesNoMounts(t *testing.T) {
	needRoot(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.EStargz)
	h := newHome(t)
	h.must("msb-fs", "pull", "--insecure", ref)
	var dirs []string
	for _, name := range []string{"a", "b c"} {
		dir := filepath.Join(h.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
		h.must("msb-fs", "mount", "--insecure", ref, dir)
	}
	for try := range 2 {
		out := h.must("msb-fs", "status", "--format", "json")
		_, pid, _ := strings.Cut(out, `"pid":`)
		n, err := strconv.Atoi(strings.TrimSpace(pid[:strings.IndexAny(pid, ",}")]))
		if err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.must("msb-fs", "mounts") // which starts the next
		out = h.must("msb-fs", "status")
		for _, dir := range dirs {
			if try == 0 && !strings.Contains(out, "unmounted "+dir) {
				t.Errorf("it does not say that it unmounted %s:\n%s", dir, out)
			}
			if _, err := os.ReadDir(dir); err != nil {
				t.Errorf("%s: %v", dir, err)
			}
		}
		if try == 0 { // cached: no registry is asked
			s.Down()
			h.must("msb-fs", "mount", "--insecure", ref, dirs[0])
			if b, err := os.ReadFile(dirs[0] + "/etc/debian_version"); err != nil || string(b) != "12.0\n" {
				t.Errorf("without its registry: %q, %v", b, err)
			}
		}
	}
}

// TestMountOfAnOrdinaryUser mounts without any privilege but fusermount3's, for the user alone.
func TestMountOfAnOrdinaryUser(t *testing.T) {
	needRoot(t) // to become somebody else
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip("fusermount3 is not installed")
	}
	if st, err := os.Stat("/dev/fuse"); err != nil || st.Mode().Perm()&0o006 != 0o006 {
		t.Skip("/dev/fuse is not everybody's")
	}
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.EStargz)
	h := newHomeOf(t, &syscall.Credential{Uid: 65534, Gid: 65534})
	mnt := filepath.Join(h.dir, "mount point")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(mnt, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	h.must("msb-fs", "mount", "--insecure", ref, mnt)
	as := func(uid uint32, args ...string) (string, error) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := as(65534, "cat", mnt+"/etc/debian_version"); err != nil || out != "12.0\n" {
		t.Errorf("its user reads %q, %v", out, err)
	}
	conf, _ := os.ReadFile("/etc/fuse.conf")
	if !strings.Contains("\n"+string(conf), "\nuser_allow_other") {
		if out, err := as(12345, "cat", mnt+"/etc/debian_version"); err == nil {
			t.Errorf("somebody else reads %q", out)
		}
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if !strings.Contains(line, strings.ReplaceAll(mnt, " ", `\040`)) {
			continue
		}
		for _, want := range []string{"nosuid", "nodev", "ro,"} {
			if !strings.Contains(line, want) {
				t.Errorf("it is not %s: %s", want, line)
			}
		}
	}
	h.must("msb-fs", "umount", mnt)
}

// TestCorruptMidStream mounts an image whose layer turns out to be another than its digest says: readers get an error, soon,
// and mounts says why.
func TestCorruptMidStream(t *testing.T) {
	needRoot(t)
	s := serve(t, registry.Options{Link: registry.NewLink(4<<20, time.Millisecond)})
	ref, _ := pythonImage(t, s, testimage.Gzip)
	s.Inject(registry.Match{Op: registry.Blob}, registry.FlipByte(3<<20))
	h := newHome(t)
	mnt := t.TempDir()
	if o := h.fs("mount", "--insecure", ref, mnt); o.code != 0 {
		if !strings.Contains(o.stderr, "corrupt") && !strings.Contains(o.stderr, "digest") {
			t.Errorf("refused, but not for that: %v", o)
		}
		return
	}
	find := exec.Command("timeout", "120", "find", mnt)
	out, err := find.CombinedOutput()
	if err == nil || find.ProcessState.ExitCode() == 124 || !strings.Contains(string(out), "Input/output error") {
		t.Errorf("find: %v: %.500s", err, out)
	}
	if out := h.must("msb-fs", "mounts", "--format", "json"); !strings.Contains(out, `"error"`) {
		t.Errorf("mounts says nothing of it: %s", out)
	}
	h.must("msb-fs", "umount", "--lazy", mnt)
}
