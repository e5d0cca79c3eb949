package tarcopy

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func tree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	if err := os.MkdirAll(filepath.Join(dir, "sub", "closed"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"a": 0o644, "sub/tool": 0o755, "sub/closed/x": 0o600} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("content of "+name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../a", filepath.Join(dir, "sub", "link")); err != nil {
		t.Fatal(err)
	}
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := os.Chtimes(filepath.Join(dir, "sub"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "sub", "closed"), 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "sub", "closed"), 0o700) })
	return dir
}

func TestCopy(t *testing.T) {
	src := tree(t)
	for _, c := range []struct{ from, to, found string }{
		{"", "exists", "exists/src"},
		{"", "absent", "absent"},
		{"a", "exists/", "exists/a"},
		{"a", "other", "other"},
		{"a", "exists/b", "exists/b"},
	} {
		dst := t.TempDir()
		if err := os.Mkdir(filepath.Join(dst, "exists"), 0o755); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := Pack(&b, filepath.Join(src, c.from)); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dst, c.to)
		if strings.HasSuffix(c.to, "/") {
			to += "/"
		}
		if err := Unpack(&b, to, ""); err != nil {
			t.Fatalf("%q to %q: %v", c.from, c.to, err)
		}
		found := filepath.Join(dst, c.found)
		if c.from == "a" {
			if text, err := os.ReadFile(found); err != nil || string(text) != "content of a" {
				t.Errorf("%q to %q: %q, %v", c.from, c.to, text, err)
			}
			continue
		}
		defer os.Chmod(filepath.Join(found, "sub", "closed"), 0o700)
		for name, want := range map[string]string{"a": "-rw-r--r--", "sub": "drwxr-xr-x", "sub/tool": "-rwxr-xr-x", "sub/closed": "dr-x------", "sub/closed/x": "-rw-------", "sub/link": "Lrwxrwxrwx"} {
			st, err := os.Lstat(filepath.Join(found, name))
			if err != nil || st.Mode().String() != want {
				t.Errorf("%s: %v, %v, want %s", name, st, err, want)
			}
		}
		if st, err := os.Stat(filepath.Join(found, "sub")); err != nil || st.ModTime().Year() != 2001 {
			t.Errorf("time of a directory: %v, %v", st, err)
		}
	}
	if err := Unpack(strings.NewReader(""), filepath.Join(t.TempDir(), "absent")+"/", ""); err == nil {
		t.Error("an absent directory was taken")
	}
}

// A hostile sender reaches nothing outside, and nothing at all of what it must not make.
func TestHostileStreams(t *testing.T) {
	file := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 1}
	}
	for name, headers := range map[string][]tar.Header{
		"parent":           {file("../escaped")},
		"parent inside":    {file("a/../../escaped")},
		"link out":         {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, file("l/escaped")},
		"absolute link":    {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, file("l/msb-escaped")},
		"link as dir":      {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l", Typeflag: tar.TypeDir, Mode: 0o755}, file("l/escaped")},
		"device":           {{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"pipe out":         {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/escaped", Typeflag: tar.TypeFifo}},
		"hard link":        {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../secret"}},
		"hard link by one": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/secret"}},
		"absolute name":    {{Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}},
		"link inside":      {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "other"}, file("l/escaped")},
		"link as its dir":  {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "other"}, {Name: "l", Typeflag: tar.TypeDir, Mode: 0o777}},
		"file over a tree": {{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755}, file("d/x"), file("d")},
	} {
		dir := t.TempDir()
		dest := filepath.Join(dir, "dest")
		if err := os.Mkdir(dest, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "secret"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		noError(t, os.Mkdir(filepath.Join(dest, "other"), 0o700))
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			w.Write([]byte("x")[:h.Size])
		}
		w.Close()
		if err := Unpack(&b, dest, ""); err == nil {
			t.Errorf("%s: was unpacked", name)
		}
		for _, escaped := range []string{filepath.Join(dir, "escaped"), "/tmp/msb-escaped", "/escaped", filepath.Join(dest, "other", "escaped")} {
			if _, err := os.Lstat(escaped); err == nil {
				t.Errorf("%s: made %s", name, escaped)
			}
		}
	}
	// Set-id bits do not travel.
	dest := t.TempDir()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "su", Typeflag: tar.TypeReg, Mode: 0o6755})
	w.Close()
	if err := Unpack(&b, dest, ""); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dest, "su")); err != nil || st.Mode() != 0o755 {
		t.Errorf("%v, %v", st, err)
	}
}

// What other programs than Pack put into streams: absolute names, directories that are not named, comments, devices.
func TestOtherStreams(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "of git"}},
		{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeReg, Name: "/abs", Size: 1},
		{Typeflag: tar.TypeReg, Name: "./deep/er/file", Size: 1, Mode: 0o640},
		{Typeflag: tar.TypeLink, Name: "deep/link", Linkname: "./deep/er/file"},
		{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o620},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte("x")[:h.Size])
	}
	w.Close()
	dest := t.TempDir()
	if err := Unpack(&b, dest, ""); err == nil || !strings.Contains(err.Error(), `"null" is a device`) {
		t.Errorf("%v, want to hear of the device", err)
	}
	for name, want := range map[string]string{"abs": "----------", "deep/er/file": "-rw-r-----", "deep/link": "-rw-r-----", "pipe": "prw--w----"} {
		if st, err := os.Lstat(filepath.Join(dest, name)); err != nil || st.Mode().String() != want {
			t.Errorf("%s: %v, %v, want %s", name, st, err, want)
		}
	}
}

// A tree with everything that a copy keeps comes out as it went in.
func TestTreeOfEverything(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	noError(t, os.MkdirAll(filepath.Join(src, "d"), 0o755))
	noError(t, os.WriteFile(filepath.Join(src, "one"), []byte("x"), 0o600))
	noError(t, os.Link(filepath.Join(src, "one"), filepath.Join(src, "d", "two")))
	noError(t, os.WriteFile(filepath.Join(src, "d", "\xff name\n"), nil, 0o600))
	noError(t, syscall.Mkfifo(filepath.Join(src, "pipe"), 0o600))
	ln, err := net.Listen("unix", filepath.Join(src, "socket"))
	noError(t, err)
	defer ln.Close()
	for _, to := range []string{"there", "new"} { // into a directory, and in its place
		dest := t.TempDir()
		noError(t, os.Mkdir(filepath.Join(dest, "there"), 0o755))
		var b bytes.Buffer
		noError(t, Pack(&b, src))
		noError(t, Unpack(&b, filepath.Join(dest, to), ""))
		at := filepath.Join(dest, to)
		if to == "there" {
			at = filepath.Join(at, "src")
		}
		one, err := os.Stat(filepath.Join(at, "one"))
		noError(t, err)
		two, err := os.Stat(filepath.Join(at, "d", "two"))
		noError(t, err)
		if !os.SameFile(one, two) {
			t.Error("two names of a file became two files")
		}
		if st, err := os.Lstat(filepath.Join(at, "pipe")); err != nil || st.Mode().Type() != fs.ModeNamedPipe {
			t.Errorf("pipe: %v, %v", st, err)
		}
		if _, err := os.Lstat(filepath.Join(at, "d", "\xff name\n")); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(filepath.Join(at, "socket")); err == nil {
			t.Error("a socket was copied")
		}
	}
}

// Whatever a sender calls what it sends, it is what was asked for.
func TestNameOfWhatWasAskedFor(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	noError(t, w.WriteHeader(&tar.Header{Name: ".ssh/authorized_keys", Typeflag: tar.TypeReg, Mode: 0o600}))
	noError(t, w.WriteHeader(&tar.Header{Name: ".profile", Typeflag: tar.TypeDir, Mode: 0o700}))
	noError(t, w.Close())
	dest := t.TempDir()
	noError(t, Unpack(&b, dest, "hosts"))
	entries, err := os.ReadDir(dest)
	if err != nil || len(entries) != 1 || entries[0].Name() != "hosts" {
		t.Errorf("%v, %v", entries, err)
	}
}

// What a directory contains goes into a directory that is there, and becomes one that is not.
func TestContents(t *testing.T) {
	src := tree(t)
	for _, to := range []string{"there", "new"} {
		dest := t.TempDir()
		noError(t, os.Mkdir(filepath.Join(dest, "there"), 0o755))
		var b bytes.Buffer
		noError(t, Pack(&b, src+"/."))
		noError(t, Unpack(&b, filepath.Join(dest, to), ""))
		defer os.Chmod(filepath.Join(dest, to, "sub", "closed"), 0o700)
		for name, want := range map[string]string{"a": "content of a", "sub/tool": "content of sub/tool"} {
			if got, err := os.ReadFile(filepath.Join(dest, to, name)); err != nil || string(got) != want {
				t.Errorf("%s: %s: %q, %v", to, name, got, err)
			}
		}
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
