package fs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// describe renders all that is to be seen of a file.
func describe(t testing.TB, tree *Tree, p string, id ID, a Attr) string {
	ctx := context.Background()
	s := fmt.Sprintf("%s %o n%d %d:%d", p, a.Mode, a.Nlink, a.UID, a.GID)
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		b := make([]byte, a.Size+1)
		n, err := tree.ReadAt(ctx, id, b, 0)
		if err != nil || int64(n) != a.Size {
			t.Errorf("read %s: %d of %d bytes, %v", p, n, a.Size, err)
		}
		s += fmt.Sprintf(" %q", b[:n])
	case syscall.S_IFLNK:
		target, err := tree.Readlink(ctx, id)
		if err != nil {
			t.Errorf("readlink %s: %v", p, err)
		}
		s += " -> " + target
	case syscall.S_IFCHR, syscall.S_IFBLK:
		s += fmt.Sprintf(" %#x", a.Rdev)
	}
	names, err := tree.Listxattr(ctx, id)
	if err != nil {
		t.Errorf("listxattr %s: %v", p, err)
	}
	for _, x := range names {
		v, err := tree.Getxattr(ctx, id, x)
		if err != nil {
			t.Errorf("getxattr %s %s: %v", p, x, err)
		}
		s += fmt.Sprintf(" %s=%q", x, v)
	}
	return s
}

// paths lists the names of a tree with their contents, short.
func paths(t testing.TB, tree *Tree) string {
	t.Helper()
	var out []string
	for _, l := range dump(t, tree) {
		f := strings.Fields(l)
		switch {
		case f[0] == "linked:":
			out = append(out, l)
		case strings.HasPrefix(l, " "): // the root
		default:
			s := f[0]
			if len(f) > 4 {
				s += "=" + strings.Join(f[4:], "")
			}
			out = append(out, s)
		}
	}
	return strings.Join(out, "\n")
}

func TestMerge(t *testing.T) {
	layers := func(ls ...*fakeLayer) []*fakeLayer { return ls }
	for _, c := range []struct {
		name   string
		layers []*fakeLayer
		want   []string
	}{
		{"topmost wins", layers(newLayer(file("a", "1"), file("b", "1")), newLayer(file("a", "2"))), []string{`/a="2"`, `/b="1"`}},
		{"directories merge", layers(newLayer(dir("d"), file("d/a", "1")), newLayer(dir("d"), file("d/b", "2"))), []string{`/d`, `/d/a="1"`, `/d/b="2"`}},
		{"whiteout", layers(newLayer(file("a", "1"), file("b", "1")), newLayer(file(".wh.a", ""))), []string{`/b="1"`}},
		{"whiteout of a directory", layers(newLayer(file("d/a", "1"), file("b", "1")), newLayer(file(".wh.d", ""))), []string{`/b="1"`}},
		{"a layer's whiteout spares its own entry", layers(newLayer(file("a", "1")), newLayer(file("a", "2"), file(".wh.a", ""))), []string{`/a="2"`}},
		{"whiteout and directory are an opaque directory", layers(newLayer(file("d/a", "1")), newLayer(file(".wh.d", ""), dir("d"), file("d/b", "2"))), []string{`/d`, `/d/b="2"`}},
		{"opaque", layers(newLayer(file("d/a", "1"), file("d/e/f", "1")), newLayer(dir("d"), file("d/b", "2"), file("d/.wh..wh..opq", ""))), []string{`/d`, `/d/b="2"`}},
		{"opaque hides through directories", layers(newLayer(file("d/e/f", "1")), newLayer(dir("d"), file("d/.wh..wh..opq", ""), file("d/e/g", "2"))), []string{`/d`, `/d/e`, `/d/e/g="2"`}},
		{"opaque alone empties", layers(newLayer(file("d/a", "1")), newLayer(file("d/.wh..wh..opq", ""))), []string{`/d`}},
		{"opaque root", layers(newLayer(file("d/a", "1")), newLayer(file(".wh..wh..opq", ""), file("b", "2"))), []string{`/b="2"`}},
		{"opaque of nothing", layers(newLayer(file("a", "1")), newLayer(file("d/.wh..wh..opq", ""))), []string{`/a="1"`}},
		{"whiteout in nothing", layers(newLayer(file("a", "1")), newLayer(file("d/e/.wh.x", ""))), []string{`/a="1"`}},
		{"file over directory over file", layers(newLayer(file("x/a", "1")), newLayer(file("x", "2")), newLayer(file("x/b", "3"))), []string{`/x`, `/x/b="3"`}},
		{"directory over file", layers(newLayer(file("x", "1")), newLayer(dir("x"))), []string{`/x`}},
		{"symlink over directory", layers(newLayer(file("x/a", "1")), newLayer(symlink("x", "y"))), []string{`/x=->y`}},
		{"later duplicate wins", layers(newLayer(file("a", "1"), file("a", "2"))), []string{`/a="2"`}},
		{"duplicate directories merge", layers(newLayer(dir("d"), file("d/a", "1"), dir("d").mode(0o700), file("d/b", "2"))), []string{`/d`, `/d/a="1"`, `/d/b="2"`}},
		{"file then directory in one layer", layers(newLayer(file("d/x", "0")), newLayer(file("d", "1"), dir("d"), file("d/b", "2"))), []string{`/d`, `/d/b="2"`}},
		{"directory then file in one layer", layers(newLayer(file("d/x", "0"), file("d", "1"))), []string{`/d="1"`}},
		{"file below a file", layers(newLayer(file("f", "1"), file("f/x", "2"), file("g", "3"))), []string{`/f="1"`, `/g="3"`}},
		{"hard link", layers(newLayer(file("a", "1"), hardlink("b", "a"), hardlink("c", "b"))), []string{`/a="1"`, `/b="1"`, `/c="1"`, "linked: /a /b /c"}},
		{"hard link to a lower layer", layers(newLayer(file("d/a", "1")), newLayer(hardlink("b", "d/a"))), []string{`/b="1"`, `/d`, `/d/a="1"`, "linked: /b /d/a"}},
		{"hard link whose target is removed above", layers(newLayer(file("a", "1"), hardlink("b", "a")), newLayer(file(".wh.a", ""))), []string{`/b="1"`}},
		{"hard link whose target is replaced above", layers(newLayer(file("a", "1"), hardlink("b", "a")), newLayer(file("a", "2"))), []string{`/a="2"`, `/b="1"`}},
		{"hard link to a later entry", layers(newLayer(hardlink("b", "z"), file("z", "1"))), []string{`/b="1"`, `/z="1"`, "linked: /b /z"}},
		{"dangling hard link", layers(newLayer(hardlink("b", "nothing"), file("a", "1"))), []string{`/a="1"`}},
		{"dangling hard link hides", layers(newLayer(file("b", "1")), newLayer(hardlink("b", "nothing"))), nil},
		{"hard link circle", layers(newLayer(hardlink("a", "b"), hardlink("b", "a"), hardlink("c", "c"))), nil},
		{"hard link to a directory", layers(newLayer(dir("d"), hardlink("a", "d"))), []string{"/d"}},
		{"hard link to a symlink", layers(newLayer(symlink("s", "t"), hardlink("a", "s"))), []string{"/a=->t", "/s=->t", "linked: /a /s"}},
		{"hard link hidden below an opaque directory", layers(newLayer(file("d/a", "1")), newLayer(file("d/.wh..wh..opq", ""), hardlink("b", "d/a"))), []string{`/b="1"`, `/d`}},
		{"no layers", nil, nil},
		{"names no file system takes", layers(newLayer(file("a/"+strings.Repeat("x", 256), "1"), file(strings.Repeat("y", 255), "2"))), []string{"/" + strings.Repeat("y", 255) + `="2"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := sealedTree(t, Options{}, c.layers...)
			if got, want := paths(t, tree), strings.Join(c.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestAttributes(t *testing.T) {
	base := newLayer(dir("d").mode(0o2750).owner(1, 2).at(-5, 7), file("f", "x").mode(0o4755).owner(3, 4).xattr("user.a", "1").xattr("security.capability", "\x00\x01"),
		device("null", '3', 1, 3), device("disk", '4', 259, 70000), device("pipe", '6', 0, 0), symlink("s", "some/where"))
	upper := newLayer(file("d/x", "1"), file("new/y", "2"))
	tree := sealedTree(t, Options{}, base, upper)
	got := strings.Join(dump(t, tree), "\n")
	want := strings.Join([]string{
		` 40755 n4 0:0`,
		`/d 42750 n2 1:2`,
		`/d/x 100644 n1 0:0 "1"`,
		fmt.Sprintf(`/disk 60660 n1 0:0 %#x`, 70000&0xff|259<<8|(70000&^0xff)<<12),
		`/f 104755 n1 3:4 "x" security.capability="\x00\x01" user.a="1"`,
		`/new 40755 n2 0:0`,
		`/new/y 100644 n1 0:0 "2"`,
		`/null 20660 n1 0:0 0x103`,
		`/pipe 10660 n1 0:0`,
		`/s 120777 n1 0:0 -> some/where`,
	}, "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	_, a, err := tree.Walk(context.Background(), "/d", true)
	if err != nil || a.Mtime.Sec != -5 || a.Mtime.Nsec != 7 {
		t.Errorf("mtime of /d: %+v, %v", a.Mtime, err)
	}
}

func TestReopen(t *testing.T) {
	file1 := filepath.Join(t.TempDir(), "tree")
	l := newLayer(file("a/b", "1"), hardlink("c", "a/b"), symlink("s", "a"), file("x", "y").xattr("user.k", "v"))
	first := sealedTree(t, Options{File: file1}, l)
	want := dump(t, first)
	again := newTree(t, Options{File: file1}, l)
	select {
	case <-again.Sealed():
	default:
		t.Error("a tree of a file is not sealed at once")
	}
	if got := dump(t, again); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	other := newTree(t, Options{File: file1}, l, newLayer())
	if other.grow == nil {
		t.Error("a tree file of another number of layers was used")
	}
}

func TestWalk(t *testing.T) {
	tree := sealedTree(t, Options{}, newLayer(file("a/b/f", "1"), symlink("abs", "/a/b"), symlink("a/up", "../../../a/b"), symlink("loop", "loop"),
		symlink("dangle", "nowhere"), symlink("trail", "a/b/")))
	for _, c := range []struct {
		path   string
		follow bool
		err    error
		ends   string
	}{
		{"/", true, nil, "/"}, {"", true, nil, "/"}, {"a/b/f", true, nil, "/a/b/f"}, {"/abs/f", true, nil, "/a/b/f"}, {"a/up/../b/f", true, nil, "/a/b/f"},
		{"/abs", false, nil, "/abs"}, {"/abs", true, nil, "/a/b"}, {"/abs/", false, nil, "/a/b"}, {"/trail", true, nil, "/a/b"}, {"/../../a", true, nil, "/a"},
		{"/loop", true, syscall.ELOOP, ""}, {"/loop", false, nil, "/loop"}, {"/dangle", true, syscall.ENOENT, ""}, {"a/b/f/", true, syscall.ENOTDIR, ""},
		{"a/b/f/x", true, syscall.ENOTDIR, ""}, {strings.Repeat("a/../", 1000), true, syscall.ENAMETOOLONG, ""},
	} {
		id, _, err := tree.Walk(context.Background(), c.path, c.follow)
		if !errors.Is(err, c.err) || err == nil && tree.Path(id) != c.ends {
			t.Errorf("Walk(%q, %v) = %q, %v; want %q, %v", c.path, c.follow, tree.Path(id), err, c.ends, c.err)
		}
	}
}
