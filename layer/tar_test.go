package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// describe is an entry as the tables below write it.
func describe(e Entry) string {
	s := fmt.Sprintf("%s %o %d:%d", e.Name, e.Mode, e.UID, e.GID)
	if e.Kind != Plain {
		s = fmt.Sprintf("%s %s", e.Name, [...]string{"", "implicit", "hardlink", "whiteout", "opaque"}[e.Kind])
	}
	if e.Linkname != "" {
		s += " -> " + e.Linkname
	}
	if e.Rdev != 0 {
		s += fmt.Sprintf(" rdev %x", e.Rdev)
	}
	if e.Size != 0 {
		s += fmt.Sprintf(" size %d", e.Size)
	}
	if e.Mtime != (Time{}) && e.Mtime.Sec != 1700000000 {
		s += fmt.Sprintf(" at %d.%09d", e.Mtime.Sec, e.Mtime.Nsec)
	}
	for _, x := range e.Xattrs {
		s += fmt.Sprintf(" %s=%q", x.Name, x.Value)
	}
	return s
}

func typed(typ byte, name, link string) item {
	return item{Header: tar.Header{Name: name, Linkname: link, Typeflag: typ, Mode: 0o755, ModTime: time.Unix(1700000000, 0)}}
}

// TestEntries shows what becomes of everything that tars hold.
func TestEntries(t *testing.T) {
	long := strings.Repeat("d", 255) + "/" + strings.Repeat("f", 255)
	full := file("full", []byte("x"))
	full.Mode, full.Uid, full.Gid = 0o6751, 3<<20, 70000
	full.PAXRecords = map[string]string{"SCHILY.xattr.user.b": "2", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02", "comment": "no"}
	old := file("old", nil)
	old.ModTime = time.Unix(-2, 250_000_000)
	old.Format = tar.FormatPAX
	dev := typed(tar.TypeBlock, "dev", "")
	dev.Devmajor, dev.Devminor = 259, 70000
	gnu := file("gnu/"+strings.Repeat("long", 60), nil)
	gnu.Format = tar.FormatGNU
	tests := []struct {
		name string
		tar  []item
		want []string
	}{
		{"names", []item{dir("./"), dir("/abs/"), file("./abs/./f", nil), file("x/../y", nil), file("abs//g", nil)},
			[]string{" 40755 0:0", "abs 40755 0:0", "abs/f 100644 0:0", "y 100644 0:0", "abs/g 100644 0:0"}},
		{"parents", []item{file("a/b/c", nil), dir("a"), file("a/d", nil), file("e", nil), file("e/f", nil)},
			[]string{"a implicit", "a/b implicit", "a/b/c 100644 0:0", "a 40755 0:0", "a/d 100644 0:0", "e 100644 0:0", "e implicit", "e/f 100644 0:0"}},
		{"through symlink", []item{typed(tar.TypeSymlink, "lib", "usr/lib"), file("lib/x", nil)}, []string{"lib 120777 0:0 -> usr/lib size 7", "lib/x 100644 0:0"}},
		{"long names", []item{file(long, nil), gnu}, []string{long[:255] + " implicit", long + " 100644 0:0", "gnu implicit", gnu.Name + " 100644 0:0"}},
		{"not UTF-8", []item{file("caf\xe9", nil), typed(tar.TypeSymlink, "l\xff", "\xfe")}, []string{"caf\xe9 100644 0:0", "l\xff 120777 0:0 -> \xfe size 1"}},
		{"attributes", []item{full}, []string{`full 106751 3145728:70000 size 1 security.capability="\x01\x00\x00\x02" user.b="2"`}},
		{"time", []item{old}, []string{"old 100644 0:0 at -2.250000000"}},
		{"devices", []item{dev, typed(tar.TypeFifo, "p", ""), typed(tar.TypeChar, "c", "")},
			[]string{"dev 60755 0:0 rdev 11110370", "p 10755 0:0", "c 20755 0:0"}},
		{"hard links", []item{typed(tar.TypeLink, "a/l", "./later"), file("later", []byte("12"))},
			[]string{"a implicit", "a/l hardlink -> later", "later 100644 0:0 size 2"}},
		{"duplicates", []item{file("f", []byte("1")), file("f", []byte("22")), dir("f")}, []string{"f 100644 0:0 size 1", "f 100644 0:0 size 2", "f 40755 0:0"}},
		{"whiteouts", []item{file("a/.wh.b", []byte("x")), file(".wh.c", nil), file("d/.wh..wh..opq", nil), file(".wh..wh..opq", nil),
			file(".wh..wh.aufs", nil), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", []byte("y")), file("a/.whb", nil)},
			[]string{"a implicit", "a/b whiteout", "c whiteout", "d implicit", "d opaque", " opaque", "a/.whb 100644 0:0"}},
		{"landmarks stay", []item{file(".no.prefetch.landmark", []byte("\x0f"))}, []string{".no.prefetch.landmark 100644 0:0 size 1"}},
		{"global header", []item{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": "x"}}}, file("f", nil)},
			[]string{"f 100644 0:0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			blob := makeTar(t, tt.tar...)
			o := Options{Dir: t.TempDir()}
			for _, mode := range []Mode{Streaming, LazyIndex} {
				l := open(t, descriptor(blob, typeTar, nil), &memBlob{data: blob}, o)
				<-l.Done()
				if m, _ := l.Mode(); m != mode && m != Full {
					t.Errorf("mode %s, want %s", m, mode)
				}
				var got []string
				for _, e := range allEntries(t, l) {
					got = append(got, describe(e))
				}
				if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
					t.Errorf("%s: got\n%q, want\n%q", mode, got, tt.want)
				}
			}
		})
	}
}

// TestRefused shows what no layer may have.
func TestRefused(t *testing.T) {
	deep := file(strings.Repeat("a/", MaxDepth)+"f", nil)
	long := file(strings.Repeat(strings.Repeat("x", 200)+"/", 21)+"f", nil)
	dev := typed(tar.TypeChar, "c", "")
	dev.Devmajor = 4096
	tests := []struct {
		name string
		item item
		want string
	}{
		{"escape", file("../x", nil), "leaves the layer's root"},
		{"hidden escape", file("a/../../x", nil), "leaves the layer's root"},
		{"link escape", typed(tar.TypeLink, "l", "a/../../etc/passwd"), "leaves the layer's root"},
		{"link to the root", typed(tar.TypeLink, "l", "./"), "to the root"},
		{"root", typed(tar.TypeSymlink, "./", "x"), "root is not a directory"},
		{"empty symlink", typed(tar.TypeSymlink, "s", ""), "target"},
		{"long component", file(strings.Repeat("x", 256), nil), "255"},
		{"long name", long, "4095"},
		{"deep name", deep, "1024"},
		{"whiteout of nothing", file("a/.wh.", nil), "hides no name"},
		{"whiteout of dot", file(".wh..", nil), "hides no name"},
		{"whiteout of dot dot", file("a/.wh...", nil), "hides no name"},
		{"inside a whiteout", file(".wh.a/b", nil), "inside of a whiteout"},
		{"device", dev, "Linux cannot have"},
		{"type", typed('M', "m", ""), "unknown tar type"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			blob := makeTar(t, file("before", []byte("data")), tt.item)
			st := newStore()
			l := open(t, descriptor(blob, typeTar, nil), &memBlob{data: blob}, Options{Chunks: st})
			<-l.Done()
			if err := l.Err(); !errors.Is(err, ErrRefused) || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %.300v, want %q", err, tt.want)
			}
			if len(st.m) != 0 {
				t.Error("chunks are left")
			}
		})
	}
}

// TestNUL has names that Go's writer does not write.
func TestNUL(t *testing.T) {
	for _, name := range []string{"a\x00b", "\x00"} {
		if _, err := cleanName(name); !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestSparse streams sparse files as GNU tar writes them, and reads them from the index.
func TestSparse(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed")
	}
	dir := t.TempDir()
	content := make([]byte, 13<<20)
	copy(content[1<<20+7:], text(1, 100_000))
	copy(content[9<<20:], noise(2, 300_000))
	path := filepath.Join(dir, "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt(content[1<<20:2<<20], 1<<20)
	f.WriteAt(content[9<<20:10<<20], 9<<20)
	f.Truncate(int64(len(content)))
	f.Close()
	os.WriteFile(filepath.Join(dir, "z"), text(3, 10_000), 0o600)
	for _, format := range []string{"--format=gnu", "--format=pax --sparse-version=0.0", "--format=pax --sparse-version=0.1", "--format=pax --sparse-version=1.0"} {
		args := append(strings.Fields(format), "-S", "-c", "-C", dir, "sparse", "z")
		tarball, err := exec.Command("tar", args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if len(tarball) > 3<<20 {
			t.Fatalf("%s: tar did not find the holes", format)
		}
		for _, form := range []testForm{named("tar"), named("gzip-6"), named("zstd-one")} {
			t.Run(format+" "+form.name, func(t *testing.T) {
				blob, _ := form.pack(t, tarball)
				o := Options{Dir: t.TempDir(), Chunks: newStore()}
				for _, again := range []bool{false, true} {
					mb := &memBlob{data: blob}
					st := newStore()
					o.Chunks = st
					l := open(t, descriptor(blob, form.typ, nil), mb, o)
					if err := l.Complete(t.Context()); err != nil {
						t.Fatal(err)
					}
					for _, st := range []*memStore{st, nil} {
						if got := readEntry(t, l, st, 0, 0, int64(len(content))); !bytes.Equal(got, content) {
							t.Fatalf("sparse file has other bytes (again: %v)", again)
						}
						if got := readEntry(t, l, st, 1, 0, 10_000); !bytes.Equal(got, text(3, 10_000)) {
							t.Fatal("the file behind has other bytes")
						}
					}
					c, _ := l.Chunk(t.Context(), 0, 5<<20)
					before := mb.opens + mb.reads
					if data, err := l.Fetch(t.Context(), c); err != nil || !zero(data) || mb.opens+mb.reads != before {
						t.Errorf("a hole is read from the blob (%v)", err)
					}
				}
			})
		}
	}
}

// TestExpansion holds a bomb against the limit.
func TestExpansion(t *testing.T) {
	src := &tarSource{ctx: t.Context(), max: 1000, hash: sha256.New(), s: &stream{out: make(chan outbound, 1)}}
	src.s.out <- outbound{data: make([]byte, 1001)}
	if _, err := src.Read(make([]byte, 2000)); !errors.Is(err, ErrRefused) {
		t.Errorf("err = %v", err)
	}
	if maxExpanded(1) != FreeExpansion || maxExpanded(1<<30) != MaxExpansion<<30 || maxExpanded(1<<62) != 1<<62 {
		t.Error("maxExpanded")
	}
}

// TestLarge streams a file of more than 4 GiB, most of it a hole, and reads around that border.
func TestLarge(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed")
	}
	const size, at = 5<<30 + 123, 4<<30 - 10
	path := filepath.Join(t.TempDir(), "large")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	data := text(1, 100_000)
	f.WriteAt(data, at)
	f.Truncate(size)
	f.Close()
	tarball, err := exec.Command("tar", "-S", "-c", "-C", filepath.Dir(path), "large").Output()
	if err != nil {
		t.Fatal(err)
	}
	st := newStore()
	l := open(t, descriptor(tarball, typeTar, nil), &memBlob{data: tarball}, Options{Chunks: st})
	if e := allEntries(t, l)[0]; e.Size != size {
		t.Errorf("size %d", e.Size)
	}
	want := append(append(make([]byte, 1000), data...), make([]byte, 1000)...)
	for _, st := range []*memStore{st, nil} {
		if !bytes.Equal(readEntry(t, l, st, 0, at-1000, int64(len(want))), want) {
			t.Error("other bytes around 4 GiB")
		}
		if !zero(readEntry(t, l, st, 0, size-5, 5)) {
			t.Error("other bytes at the end")
		}
	}
}
