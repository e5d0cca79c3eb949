package tarcopy

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
		if err := Unpack(&b, to); err != nil {
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
	if err := Unpack(strings.NewReader(""), filepath.Join(t.TempDir(), "absent")+"/"); err == nil {
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
		"absolute":         {file("/escaped")},
		"link out":         {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, file("l/escaped")},
		"absolute link":    {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, file("l/msb-escaped")},
		"link as dir":      {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l", Typeflag: tar.TypeDir, Mode: 0o755}, file("l/escaped")},
		"device":           {{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"fifo":             {{Name: "f", Typeflag: tar.TypeFifo}},
		"hard link":        {{Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}},
		"file over a tree": {{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755}, file("d/x"), file("d")},
	} {
		dir := t.TempDir()
		dest := filepath.Join(dir, "dest")
		if err := os.Mkdir(dest, 0o755); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			w.Write([]byte("x")[:h.Size])
		}
		w.Close()
		if err := Unpack(&b, dest); err == nil {
			t.Errorf("%s: was unpacked", name)
		}
		for _, escaped := range []string{filepath.Join(dir, "escaped"), "/tmp/msb-escaped", "/escaped"} {
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
	if err := Unpack(&b, dest); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dest, "su")); err != nil || st.Mode() != 0o755 {
		t.Errorf("%v, %v", st, err)
	}
}
