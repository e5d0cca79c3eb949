package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestMountEqualsUnpack mounts the real image and compares it with what umoci unpacks: nothing may differ.
func TestMountEqualsUnpack(t *testing.T) {
	needRoot(t) // to unpack with owners
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("umoci is not installed")
	}
	for _, form := range []testimage.Form{testimage.EStargz, testimage.Gzip} {
		t.Run(string(form), func(t *testing.T) {
			s := serve(t, registry.Options{})
			ref, layout := pythonImage(t, s, form)
			bundle := filepath.Join(t.TempDir(), "bundle")
			if out, err := exec.Command("umoci", "unpack", "--image", layout+":latest", bundle).CombinedOutput(); err != nil {
				t.Fatalf("umoci: %v\n%s", err, out)
			}
			h := newHome(t)
			mnt := t.TempDir()
			h.must("msb-fs", "mount", "--insecure", "--ro", ref, mnt)
			for _, d := range diff(t, filepath.Join(bundle, "rootfs"), mnt) {
				t.Error(d)
			}
			h.must("msb-fs", "umount", mnt)
		})
	}
}

// TestMountIsWritableAbove changes files of a mount with an upper directory; the image stays as it is.
func TestMountIsWritableAbove(t *testing.T) {
	needRoot(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	mnt, plain, upper := t.TempDir(), t.TempDir(), t.TempDir()
	h.must("msb-fs", "mount", "--insecure", "--upper", upper, ref, mnt)
	h.must("msb-fs", "mount", "--insecure", "--ro", ref, plain)
	if err := os.WriteFile(filepath.Join(mnt, "etc/new"), []byte("x\n"), 0o644); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(mnt, "etc/debian_version")); err != nil {
		t.Error(err)
	}
	if err := os.Rename(filepath.Join(mnt, "opt"), filepath.Join(mnt, "opt2")); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(mnt, "opt2/file")); err != nil || string(b) != "in opt\n" {
		t.Errorf("opt2/file: %q, %v", b, err)
	}
	for _, name := range []string{"etc/debian_version", "opt/file"} {
		if _, err := os.Stat(filepath.Join(mnt, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
		if _, err := os.Stat(filepath.Join(plain, name)); err != nil {
			t.Errorf("the image lost %s: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(plain, "etc/new"), nil, 0o644); err == nil {
		t.Error("a read-only mount was written to")
	}
	h.must("msb-fs", "umount", mnt, plain)

	h.must("msb-fs", "mount", "--insecure", "--upper", upper, ref, mnt)
	if b, err := os.ReadFile(filepath.Join(mnt, "etc/new")); err != nil || string(b) != "x\n" {
		t.Errorf("etc/new after another mount: %q, %v", b, err)
	}
	h.must("msb-fs", "umount", mnt)
}
