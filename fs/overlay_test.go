package fs

import (
	"archive/tar"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// applyLayer writes one layer into a directory of its own, with whiteouts as the kernel's overlayfs has them
// (Documentation/filesystems/overlayfs.rst).
func applyLayer(t *testing.T, dir string, items []item) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, it := range items {
		p := filepath.Join(dir, it.Name)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		switch base := filepath.Base(p); {
		case base == ".wh..wh..opq":
			must(xattr.LSet(filepath.Dir(p), "trusted.overlay.opaque", []byte("y")))
			continue
		case strings.HasPrefix(base, ".wh."):
			must(unix.Mknod(filepath.Join(filepath.Dir(p), base[4:]), unix.S_IFCHR, 0))
			continue
		}
		switch it.Typeflag {
		case tar.TypeReg:
			must(os.WriteFile(p, []byte(it.body), 0o600))
		case tar.TypeDir:
			must(os.MkdirAll(p, 0o755))
		case tar.TypeSymlink:
			must(os.Symlink(it.Linkname, p))
		case tar.TypeLink:
			must(os.Link(filepath.Join(dir, it.Linkname), p))
			continue
		default:
			kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[it.Typeflag]
			must(unix.Mknod(p, kind, int(unix.Mkdev(uint32(it.Devmajor), uint32(it.Devminor)))))
		}
		must(os.Lchown(p, it.Uid, it.Gid))
		if it.Typeflag != tar.TypeSymlink {
			must(unix.Chmod(p, uint32(it.Mode)))
		}
		for k, v := range it.PAXRecords {
			must(xattr.LSet(p, strings.TrimPrefix(k, "SCHILY.xattr."), []byte(v)))
		}
	}
	for _, it := range slices.Backward(items) { // after everything has been made in it
		if !strings.HasPrefix(filepath.Base(it.Name), ".wh.") && it.Typeflag != tar.TypeLink {
			ts := unix.NsecToTimespec(it.ModTime.UnixNano())
			must(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, it.Name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
		}
	}
}

// TestOverlayfs holds the merge against the kernel's own, for layers that describe all their directories.
func TestOverlayfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount overlayfs")
	}
	layers := realistic()
	layers[1] = append(layers[1], dir("etc").mode(0o700), file("etc/new", "n"), file("home/u", "a file over a directory").at(time.Now().Unix(), 0), dir("home"))
	layers[2] = []item{
		dir("."), dir("home"), dir("home/u"), file("home/u/again", "1"), dir("tmp"), file("tmp/x", "y"), file(".wh.dev", ""), dir("usr"), dir("usr/bin"), file("usr/bin/.wh.wall", ""),
		hardlink("usr/bin/y", "tmp/x"), dir("var"), dir("var/lib"), file("var/lib/.wh..wh..opq", ""), symlink("var/lib/s", "../x"),
	}
	base := t.TempDir()
	var lower []string
	for i, l := range layers {
		d := filepath.Join(base, string(rune('a'+i)))
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		applyLayer(t, d, l)
		lower = append([]string{d}, lower...)
	}
	mnt := filepath.Join(base, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", mnt, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
		t.Skipf("needs the kernel's overlayfs over %s: %v", base, err)
	}
	defer unix.Unmount(mnt, 0)
	undated := map[string]bool{"/": true}
	theirs := snapshot(t, mnt, undated)
	ours := snapshot(t, mountTree(t, sealedTree(t, Options{}, fakes(layers)...)), undated)
	// overlayfs does not count the subdirectories of merged directories.
	count := regexp.MustCompile(`^(\S+ 4\d+) n\d+`)
	for _, s := range [][]string{theirs, ours} {
		for i := range s {
			s[i] = count.ReplaceAllString(s[i], "$1")
		}
	}
	compare(t, "overlayfs", ours, theirs)
}
