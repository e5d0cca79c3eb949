package fs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// needUmoci skips a test that compares with it.
func needUmoci(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount and to make files of any owner")
	}
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("needs umoci, to compare with")
	}
}

// mountTree mounts a tree on a fresh directory, unmounted with the test.
func mountTree(t testing.TB, tree *Tree) string {
	t.Helper()
	dir := t.TempDir()
	m, err := Mount(context.Background(), Raw(tree), dir, MountOptions{Name: "test", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func tarOf(t testing.TB, items []item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, it := range items {
		h := it.Header
		h.Size, h.Format = int64(len(it.body)), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(it.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// writeLayout writes an OCI image layout with one image tagged "t".
func writeLayout(t testing.TB, dir string, layers [][]item) {
	t.Helper()
	blob := func(b []byte) string {
		sum := sha256.Sum256(b)
		h := hex.EncodeToString(sum[:])
		p := filepath.Join(dir, "blobs/sha256", h)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return "sha256:" + h
	}
	object := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	type m = map[string]any
	var descs []m
	diffs := []string{}
	for _, l := range layers {
		b := tarOf(t, l)
		d := blob(b)
		diffs = append(diffs, d)
		descs = append(descs, m{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": d, "size": len(b)})
	}
	config := object(m{"architecture": "amd64", "os": "linux", "config": m{}, "rootfs": m{"type": "layers", "diff_ids": diffs}})
	manifest := object(m{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": descs,
		"config": m{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob(config), "size": len(config)}})
	index := object(m{"schemaVersion": 2, "manifests": []m{{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": blob(manifest),
		"size": len(manifest), "annotations": m{"org.opencontainers.image.ref.name": "t"}}}})
	for name, b := range map[string][]byte{"index.json": index, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// umoci unpacks layers the way the image specification's reference tool does; "" where it refuses them.
func umoci(t testing.TB, layers [][]item) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "umoci-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	writeLayout(t, filepath.Join(dir, "image"), layers)
	err = exec.Command("umoci", "unpack", "--image", filepath.Join(dir, "image")+":t", filepath.Join(dir, "bundle")).Run()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "bundle/rootfs")
}

// snapshot lists everything that is to be seen below root. Directories named in undated have no time that was ever written down.
func snapshot(t testing.TB, root string, undated map[string]bool) []string {
	t.Helper()
	var out []string
	groups := map[uint64][]string{}
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", p, err)
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		s := fmt.Sprintf("%s %o n%d %d:%d", name, st.Mode, st.Nlink, st.Uid, st.Gid)
		if !undated[name] {
			s += fmt.Sprintf(" %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %d %x", st.Size, sha256.Sum256(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %d -> %s", st.Size, target)
		case unix.S_IFCHR, unix.S_IFBLK:
			s += fmt.Sprintf(" dev %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			groups[st.Ino] = append(groups[st.Ino], name)
		}
		names, err := xattr.LList(p)
		if err != nil && !errors.Is(err, unix.ENOTSUP) { // what a tree without any says, once and for all
			return fmt.Errorf("listxattr %s: %w", p, err)
		}
		sort.Strings(names)
		for _, x := range names {
			v, err := xattr.LGet(p, x)
			if err != nil {
				return fmt.Errorf("getxattr %s %s: %w", p, x, err)
			}
			s += fmt.Sprintf(" %s=%x", x, v)
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if len(g) > 1 {
			sort.Strings(g)
			out = append(out, "linked: "+strings.Join(g, " "))
		}
	}
	sort.Strings(out)
	return out
}

// undated returns the directories whose times umoci leaves at "now": those that some layer has only as a parent, which it
// may have to make, and what they are made in.
func undated(layers [][]item) map[string]bool {
	u := map[string]bool{"/": true}
	for _, l := range layers {
		explicit := map[string]bool{}
		for _, it := range l {
			if it.Typeflag == tar.TypeDir {
				explicit[filepath.Join("/", it.Name)] = true
			}
		}
		for _, it := range l {
			for p := filepath.Dir("/" + it.Name); p != "/"; p = filepath.Dir(p) {
				if !explicit[p] {
					u[p], u[filepath.Dir(p)] = true, true
				}
			}
		}
	}
	return u
}

// compare fails the test where two trees differ.
func compare(t interface {
	Helper()
	Fatalf(string, ...any)
}, what string, got, want []string) {
	t.Helper()
	seen := map[string]int{}
	for _, s := range want {
		seen[s]++
	}
	var diff []string
	for _, s := range got {
		if seen[s]--; seen[s] < 0 {
			diff = append(diff, "ours:   "+s)
		}
	}
	for s, n := range seen {
		if n > 0 {
			diff = append(diff, "theirs: "+s)
		}
	}
	if len(diff) > 0 {
		sort.Slice(diff, func(i, j int) bool { return diff[i][8:] < diff[j][8:] })
		t.Fatalf("we differ from %s:\n%s", what, strings.Join(diff, "\n"))
	}
}

func fakes(layers [][]item) []*fakeLayer {
	var out []*fakeLayer
	for _, l := range layers {
		out = append(out, newLayer(l...))
	}
	return out
}

// realistic is an image as they are made: a base, a package, a change of both.
func realistic() [][]item {
	big := strings.Repeat("0123456789abcdef", 40000)
	return [][]item{
		{
			dir("."), dir("bin"), file("bin/sh", big).mode(0o755), hardlink("bin/dash", "bin/sh"), dir("etc"), file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
			file("etc/shadow", "root:*\n").mode(0o640).owner(0, 42), symlink("etc/mtab", "/proc/mounts"), dir("tmp").mode(0o1777), dir("dev"),
			device("dev/null", tar.TypeChar, 1, 3).mode(0o666), device("dev/sda", tar.TypeBlock, 8, 0).owner(0, 6), device("dev/initctl", tar.TypeFifo, 0, 0),
			dir("usr"), dir("usr/bin"), file("usr/bin/sudo", "su").mode(0o4755), file("usr/bin/wall", "w").mode(0o2755).owner(0, 5),
			file("usr/bin/ping", "ping").mode(0o755).xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
			dir("var"), dir("var/cache"), file("var/cache/old", "x"), dir("var/lib"), file("var/lib/status", "1\n").at(1.4e9, 123456789), file("empty", ""),
			dir("home"), dir("home/u").mode(0o700).owner(1000, 1000), file("home/u/.profile", "PATH=\n").owner(1000, 1000).xattr("user.note", "mine"),
		},
		{
			dir("usr"), dir("usr/lib"), dir("usr/lib/python3").at(1.5e9, 1), file("usr/lib/python3/os.py", "import sys\n"), symlink("usr/bin/python", "python3"),
			file("usr/bin/python3", big+"py").mode(0o755), dir("var"), dir("var/cache"), file("var/cache/.wh..wh..opq", ""), file("var/cache/new", "y"),
			dir("var/lib"), file("var/lib/status", "2\n"), file(".wh.empty", ""),
		},
		{
			file("app/run.py", "print(1)\n").mode(0o755).owner(1000, 1000), dir("bin"), hardlink("bin/python", "usr/bin/python3"), file("etc/.wh.mtab", ""),
			file("home/.wh.u", ""), file("home/u/fresh", "1"), dir("usr").mode(0o711),
		},
	}
}

func TestUmoci(t *testing.T) {
	needUmoci(t)
	layers := realistic()
	u := undated(layers)
	theirs := umoci(t, layers)
	if theirs == "" {
		t.Fatal("umoci refuses the image")
	}
	tree := sealedTree(t, Options{}, fakes(layers)...)
	compare(t, "umoci unpack", snapshot(t, mountTree(t, tree), u), snapshot(t, theirs, u))
}

// genLayers draws hostile stacks of layers over few names, so that they meet.
func genLayers(t *rapid.T) [][]item {
	names := []string{"a", "b", "c", "d"}
	path := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom(names), 1, 3).Draw(t, "path"), "/")
	})
	return rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) item {
		p := path.Draw(t, "name")
		switch rapid.IntRange(0, 11).Draw(t, "kind") {
		case 0, 1, 2:
			return file(p, rapid.StringN(0, 5, 5).Draw(t, "body")).mode(int64(rapid.IntRange(0, 0o7777).Draw(t, "mode"))).owner(rapid.IntRange(0, 3).Draw(t, "uid"), 7)
		case 3, 4, 5:
			// No set-group-id: umoci's own mkdir of what has no entry inherits it.
			return dir(p).mode(int64(rapid.IntRange(0, 0o1777).Draw(t, "mode"))).at(int64(rapid.IntRange(0, 2e9).Draw(t, "mtime")), 0)
		case 6:
			return symlink(p, rapid.SampledFrom([]string{"a", "../b", "/c/d", "nowhere"}).Draw(t, "target"))
		case 7:
			return hardlink(p, path.Draw(t, "target"))
		case 8:
			return file(filepath.Join(filepath.Dir(p), ".wh."+filepath.Base(p)), "")
		case 9:
			return file(p+"/.wh..wh..opq", "")
		case 10:
			return device(p, rapid.SampledFrom([]byte{tar.TypeChar, tar.TypeBlock, tar.TypeFifo}).Draw(t, "type"), 1, 3)
		default:
			return file(p, "x").xattr("user."+p[:1], p)
		}
	}), 0, 8), 1, 4).Draw(t, "layers")
}

func TestUmociGenerated(t *testing.T) {
	needUmoci(t)
	compared := 0
	rapid.Check(t, func(rt *rapid.T) {
		layers := genLayers(rt)
		theirs := umoci(t, layers)
		if theirs == "" {
			return // a layer that it cannot apply, such as a link to nothing
		}
		defer os.RemoveAll(filepath.Dir(filepath.Dir(theirs)))
		compared++
		u := undated(layers)
		tree := sealedTree(t, Options{}, fakes(layers)...)
		m, err := Mount(context.Background(), Raw(tree), t.TempDir(), MountOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Unmount()
		err = filepath.WalkDir(m.Dir(), func(p string, d os.DirEntry, err error) error {
			if info, e := d.Info(); e == nil && d.IsDir() && info.ModTime().Unix() == 0 { // also what a symlink led to
				name := "/" + strings.Trim(strings.TrimPrefix(p, m.Dir()), "/")
				u[name], u[filepath.Dir(name)] = true, true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		got, want := snapshot(t, m.Dir(), u), snapshot(t, theirs, u)
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			rt.Logf("layers:\n%s", describeLayers(layers))
		}
		compare(rt, "umoci unpack", got, want)
	})
	if compared == 0 {
		t.Error("nothing was compared")
	}
}

func describeLayers(layers [][]item) string {
	var b strings.Builder
	for i, l := range layers {
		for _, it := range l {
			fmt.Fprintf(&b, "  %d: %c %s %s %o\n", i, it.Typeflag, it.Name, it.Linkname, it.Mode)
		}
	}
	return b.String()
}
