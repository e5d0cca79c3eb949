package e2e

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/microsandbox/msb-fs/internal/registry"
)

// stressors are those of stress-ng's for file systems that a mount has the calls for. Left out are those that want devices,
// other file systems or the whole machine, inotify, which fails where an event is late, and chattr, fiemap, inode-flags, verity, whose ioctls FUSE does not pass on.
func stressors() []string {
	return strings.Fields("access chdir chmod chown dentry dir dirdeep dirmany dup fallocate fcntl file-ioctl filename flock fpunch " +
		"fsize fstat getdent handle hdd io iomix link locka lockf lockofd mknod mmap open readahead rename revio seek sendfile splice symlink sync-file touch utime xattr")
}

// TestStressors has stress-ng do at once what it knows against a writable mount of an image, checking what it reads back, and
// then what was in the image is as it was. MSB_STRESS is for how long, as stress-ng says it.
func TestStressors(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("stress-ng"); err != nil {
		t.Skip("stress-ng is not installed")
	}
	s := serve(t, registry.Options{})
	refs, want := crowdImages(t, s, 1)
	ref := refs[0]
	mnt, plain := t.TempDir(), t.TempDir() // before the home, by whose end they are unmounted
	h := newHome(t)
	h.must("msb-fs", "mount", "--insecure", "--upper", h.dir+"/upper", ref, mnt)
	h.must("msb-fs", "mount", "--insecure", ref, plain)
	scratch := filepath.Join(mnt, "stress")
	if err := os.Mkdir(scratch, 0o777); err != nil {
		t.Fatal(err)
	}
	seconds := cmp.Or(os.Getenv("MSB_STRESS"), "10")
	args := []string{"--temp-path", scratch, "--timeout", seconds, "--verify", "--hdd-bytes", "16m", "--fallocate-bytes", "16m", "--iomix-bytes", "16m", "--mmap-bytes", "16m", "--mmap-file",
		"--readahead-bytes", "16m", "--revio-bytes", "16m", "--sync-file-bytes", "16m", "--dentries", "512"}
	for _, name := range stressors() {
		args = append(args, "--"+name, "1")
	}
	cmd := exec.Command("stress-ng", args...)
	out, err := cmd.CombinedOutput()
	switch cmd.ProcessState.ExitCode() {
	case 0, 3, 4: // 3 and 4 (stress-ng(1)): the machine has too little of something for a stressor, or lacks a call
	default:
		t.Errorf("stress-ng: %v\n%s", err, out)
	}
	for _, at := range []string{mnt, plain} {
		if at == mnt {
			if err := os.RemoveAll(scratch); err != nil {
				t.Error(err)
			}
		}
		if err := checkCrowd(at, want[0]); err != nil {
			t.Error(err)
		}
	}
	h.must("msb-fs", "umount", mnt, plain)
}
