package cow

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOtherLowerIsRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := LowerDigest(dir); !errors.Is(err, ErrNoUpper) {
		t.Errorf("LowerDigest of an empty directory: %v", err)
	}
	f, err := New(sampleLower(), dir, Options{LowerDigest: "sha256:one"})
	must(t, err)
	if _, err := New(sampleLower(), dir, Options{LowerDigest: "sha256:one"}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("opened twice at a time: %v", err)
	}
	must(t, f.Close())
	_, err = New(sampleLower(), dir, Options{LowerDigest: "sha256:two"})
	if !errors.Is(err, ErrOtherLower) || !strings.Contains(err.Error(), "sha256:one") {
		t.Errorf("over another lower: %v", err)
	}
	if d, err := LowerDigest(dir); d != "sha256:one" || err != nil {
		t.Errorf("LowerDigest = %q, %v", d, err)
	}
	f, err = New(sampleLower(), dir, Options{LowerDigest: "sha256:one"})
	must(t, err)
	must(t, f.Close())
}

// One byte of a large file costs one block of the lower and a few of the upper; its attributes and name cost nothing.
func TestCopyUpByRange(t *testing.T) {
	for mode, o := range modes {
		t.Run(mode, func(t *testing.T) {
			l := sampleLower()
			m := mount(t, l, o)
			must(t, os.Chmod(m.path("big"), 0o600))
			must(t, os.Rename(m.path("big"), m.path("etc/big")))
			must(t, os.Link(m.path("etc/big"), m.path("tmp/big")))
			must(t, os.Truncate(m.path("etc/big"), 1<<20))
			if n := l.readBytes.Load(); n != 0 {
				t.Errorf("chmod, rename, link and truncate to a block's end read %d bytes of the lower", n)
			}
			f, err := os.OpenFile(m.path("etc/big"), os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte("!"), 500001)
			must(t, err)
			must(t, f.Close())
			if n := l.readBytes.Load(); n > blockSize {
				t.Errorf("writing one byte read %d bytes of the lower", n)
			}
			var st unix.Stat_t
			must(t, unix.Stat(filepath.Join(m.upper, "etc/big"), &st))
			if st.Blocks*512 > 4*blockSize {
				t.Errorf("one byte takes %d bytes of the upper", st.Blocks*512)
			}
			m.remount()
			got, err := os.ReadFile(m.path("tmp/big"))
			must(t, err)
			id, _, _ := l.Lookup(t.Context(), 1, "big")
			want := append([]byte(nil), l.files[id].data[:1<<20]...)
			want[500001] = '!'
			if string(got) != string(want) {
				t.Errorf("differs from byte %d on", firstDiff(got, want))
			}
		})
	}
}

// Whiteouts in the forms of overlayfs and of layers are understood in an upper that somebody else wrote.
func TestForeignUpper(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a whiteout device may need root")
	}
	upper := t.TempDir()
	must(t, os.MkdirAll(upper+"/opt/app/lib", 0o755))
	must(t, os.MkdirAll(upper+"/etc", 0o755))
	must(t, os.MkdirAll(upper+"/bin", 0o755))
	must(t, unix.Mknod(upper+"/etc/passwd", unix.S_IFCHR, 0))
	must(t, os.WriteFile(upper+"/etc/.wh.shadow", nil, 0o644))
	must(t, os.WriteFile(upper+"/opt/app/lib/.wh..wh..opq", nil, 0o644))
	must(t, os.WriteFile(upper+"/opt/app/lib/new.py", []byte("new\n"), 0o644))
	must(t, unix.Setxattr(upper+"/bin", "trusted.overlay.opaque", []byte("y"), 0))
	m := &mounted{t: t, dir: t.TempDir(), upper: upper, lower: sampleLower()}
	m.start()
	defer m.stop()
	for range 2 {
		wantAbsent(t, m.path("etc/passwd"))
		wantAbsent(t, m.path("etc/shadow"))
		wantAbsent(t, m.path("bin/su"))
		wantAbsent(t, m.path("opt/app/lib/a.py"))
		wantFile(t, m.path("opt/app/lib/new.py"), "new\n")
		wantFile(t, m.path("opt/app/main.py"), "print(1)\n")
		wantFile(t, m.path("etc/debian_version"), "12.5\n")
		es, err := os.ReadDir(m.path("opt/app/lib"))
		if err != nil || len(es) != 1 {
			t.Errorf("opt/app/lib has %v, %v", es, err)
		}
		m.remount()
	}
}
