package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// commitScript changes a tree in every way that a layer can tell.
const commitScript = `
	echo new >etc/new; chmod 4755 etc/new; chown 12:34 etc/new; rm etc/debian_version
	mv opt moved; mkdir opt; echo other >opt/other
	ln bin/busybox etc/busybox2; chmod 700 bin/busybox
	echo one >tmp/one; ln tmp/one tmp/two; ln -s ../nowhere tmp/link
	mkfifo tmp/fifo; mknod tmp/null c 1 3; mkdir -m 1777 tmp/sticky
	setfattr -n user.note -v hello tmp/one; setfacl -m u:7:rw tmp/one; setfacl -d -m g:8:rx tmp/sticky
	rm -r app; echo file >app
	touch -d @1000000000.123456789 tmp/one
	echo more >>etc/passwd`

// TestCommit makes images of an upper: what umoci, skopeo and our own mount make of them is what the upper's mount shows.
func TestCommit(t *testing.T) {
	needRoot(t)
	for _, tool := range []string{"umoci", "skopeo", "setfacl", "setfattr"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(tool + " is not installed")
		}
	}
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	w := &writable{t: t, h: newHome(t), ref: ref, mnt: t.TempDir(), upper: t.TempDir()}
	h, work := w.h, t.TempDir()
	w.mount()
	w.sh(t, "", commitScript)
	h.must("msb-fs", "umount", w.mnt)

	pushed := s.Host() + "/test/committed:1"
	digest := h.must("msb-fs", "commit", "--insecure", w.upper, work+"/layout:2")
	for _, target := range []string{work + "/again:2", pushed} {
		if again := h.must("msb-fs", "commit", "--insecure", w.upper, target); again != digest {
			t.Errorf("committed to %s it is %s, before it was %s", target, again, digest)
		}
	}
	command := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	command("skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+pushed, "oci:"+work+"/pulled:2")
	command("umoci", "unpack", "--image", work+"/layout:2", work+"/bundle")
	command("umoci", "unpack", "--image", work+"/pulled:2", work+"/pulledbundle")

	w.mount()
	mnt := t.TempDir()
	h.must("msb-fs", "mount", "--insecure", "--ro", pushed, mnt)
	for name, other := range map[string]string{"umoci": work + "/bundle/rootfs", "skopeo and umoci": work + "/pulledbundle/rootfs", "the mount of it": mnt} {
		for _, d := range diff(t, w.mnt, other) {
			if other == mnt && strings.HasPrefix(d, ".: ") {
				continue // a mount keeps the root directory's own time where the base image does not say one
			}
			t.Errorf("%s: %s", name, d)
		}
	}
	h.must("msb-fs", "umount", mnt, w.mnt)
	out := h.must("msb-fs", "diff", w.upper)
	for _, want := range []string{"D /etc/debian_version", "A /moved", "A /moved/file", "A /etc/new", "C /etc/passwd", "A /tmp/fifo", "D /app", "A /app"} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("diff does not say %q:\n%s", want, out)
		}
	}
	if _, err := os.Stat(filepath.Join(work, "layout", "oci-layout")); err != nil {
		t.Error(err)
	}
}
