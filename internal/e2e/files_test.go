package e2e

import (
	"strings"
	"testing"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestFilesOfImages asks ls, cat and stat for paths as people and hostile images have them.
func TestFilesOfImages(t *testing.T) {
	s := serve(t, registry.Options{})
	l, err := testimage.NewLayer(testimage.Tar,
		testimage.Dir("etc", 0o755), testimage.File("etc/passwd", "root\n"), testimage.Symlink("etc/abs", "/etc/passwd"), testimage.Symlink("etc/up", "../../../etc/passwd"),
		testimage.Symlink("a", "b"), testimage.Symlink("b", "a"), testimage.Symlink("dangling", "/nowhere"), testimage.Symlink("dir", "etc"),
		testimage.CharDevice("null", 1, 3), testimage.Fifo("fifo"), testimage.File("empty", ""), testimage.File("-dash", "dash\n"),
		testimage.File("two\nlines", "lines\n"), testimage.File("lat\xe9n", "latin\n"), testimage.Symlink("to-latin", "lat\xe9n"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Image(testimage.Config{}, l)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := s.AddImage("test/files", img)
	if err != nil {
		t.Fatal(err)
	}
	h := newHome(t)
	ref := s.Host() + "/test/files"
	h.must("msb-fs", "pull", "--insecure", "-q", ref)
	s.Down()
	for _, c := range []struct {
		command, path string
		out           string // what it prints, or what is in its error
		fails         bool
	}{
		{command: "cat", path: "/etc/passwd", out: "root\n"},
		{command: "cat", path: "etc/passwd", out: "root\n"},
		{command: "cat", path: "/etc/abs", out: "root\n"},
		{command: "cat", path: "/etc/up", out: "root\n"},
		{command: "cat", path: "/dir/../etc/./passwd", out: "root\n"},
		{command: "cat", path: "/../../etc/passwd", out: "root\n"},
		{command: "cat", path: "/-dash", out: "dash\n"},
		{command: "cat", path: "two\nlines", out: "lines\n"},
		{command: "cat", path: "/lat\xe9n", out: "latin\n"},
		{command: "cat", path: "/to-latin", out: "latin\n"},
		{command: "cat", path: "/empty"},
		{command: "cat", path: "/etc/passwd/", out: "not a directory", fails: true},
		{command: "cat", path: "/etc", out: "is a directory", fails: true},
		{command: "cat", path: "", out: "is a directory", fails: true},
		{command: "cat", path: "/a", out: "symbolic links", fails: true},
		{command: "cat", path: "/dangling", out: "no such file", fails: true},
		{command: "cat", path: "/null", out: "not a regular file", fails: true},
		{command: "cat", path: "/fifo", out: "not a regular file", fails: true},
		{command: "cat", path: "/" + strings.Repeat("d/", 3000), out: "too long", fails: true},
		{command: "ls", path: "/", out: "-dash\na\nb\ndangling\ndir\nempty\netc\nfifo\nlat\xe9n\nnull\nto-latin\ntwo\nlines\n"},
		{command: "ls", path: "/dir", out: "abs\npasswd\nup\n"},
		{command: "ls", path: "/etc/passwd", out: "passwd\n"},
		{command: "ls", path: "/lat\xe9n", out: "lat\xe9n\n"},
		{command: "ls", path: "/nope", out: "no such file", fails: true},
		{command: "stat", path: "/nope", out: "no such file", fails: true},
	} {
		o := h.fs(c.command, ref, c.path)
		switch {
		case c.fails && (o.code != 1 || !strings.Contains(o.stderr, c.out)):
			t.Errorf("%s %.50q: %v", c.command, c.path, o)
		case !c.fails && (o.code != 0 || o.stdout != c.out):
			t.Errorf("%s %q: %v", c.command, c.path, o)
		}
	}
	for path, want := range map[string]string{"/null": "device 1:3\n", "/to-latin": "link   lat\xe9n\n", "/lat\xe9n": "path   /lat\xe9n\n", "/a": "link   b\n"} {
		if out := h.must("msb-fs", "stat", ref, path); !strings.Contains(out, want) {
			t.Errorf("stat %q: %q", path, out)
		}
	}
	// By its digest it is the same image; nothing need be asked.
	if out := h.must("msb-fs", "cat", ref+"@"+digest.String(), "/etc/passwd"); out != "root\n" {
		t.Errorf("by digest: %q", out)
	}
	if o := h.fs("cat", "--pull", "never", s.Host()+"/other/files@"+digest.String(), "/etc/passwd"); o.code != 1 || !strings.Contains(o.stderr, "not cached") {
		t.Errorf("another repository's: %v", o)
	}
}
