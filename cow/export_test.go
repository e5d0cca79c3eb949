package cow

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// apply unpacks a layer over a directory, as layer.md says.
func apply(t *testing.T, layer []byte, dir string) {
	t.Helper()
	times := make(map[string]time.Time)
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		at := filepath.Join(dir, h.Name)
		base := filepath.Base(at)
		if base == opaqueFile {
			es, err := os.ReadDir(filepath.Dir(at))
			must(t, err)
			for _, e := range es {
				must(t, os.RemoveAll(filepath.Join(filepath.Dir(at), e.Name())))
			}
			continue
		}
		if hidden, ok := strings.CutPrefix(base, whPrefix); ok {
			gone := filepath.Join(filepath.Dir(at), hidden)
			if _, err := os.Lstat(gone); err != nil {
				t.Errorf("whiteout of what is not there: %s", h.Name)
			}
			must(t, os.RemoveAll(gone))
			continue
		}
		if st, err := os.Lstat(at); err == nil && !(st.IsDir() && h.Typeflag == tar.TypeDir) {
			must(t, os.RemoveAll(at))
		}
		mode := uint32(h.Mode)
		switch h.Typeflag {
		case tar.TypeDir:
			if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
		case tar.TypeReg:
			f, err := os.Create(at)
			must(t, err)
			_, err = io.Copy(f, r)
			must(t, err)
			must(t, f.Close())
		case tar.TypeLink:
			must(t, os.Link(filepath.Join(dir, h.Linkname), at))
			continue
		case tar.TypeSymlink:
			must(t, os.Symlink(h.Linkname, at))
		case tar.TypeFifo:
			must(t, unix.Mknod(at, unix.S_IFIFO, 0))
		case tar.TypeBlock:
			must(t, unix.Mknod(at, unix.S_IFBLK, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))))
		case tar.TypeChar:
			must(t, unix.Mknod(at, unix.S_IFCHR, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))))
		}
		must(t, os.Lchown(at, h.Uid, h.Gid))
		if h.Typeflag != tar.TypeSymlink {
			must(t, unix.Chmod(at, mode))
		}
		for _, name := range xattrNames(t, at) {
			if name != "security.selinux" {
				must(t, unix.Lremovexattr(at, name))
			}
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				must(t, unix.Lsetxattr(at, name, []byte(v), 0))
			}
		}
		times[at] = h.ModTime
	}
	for at, m := range times {
		ts := unix.NsecToTimespec(m.UnixNano())
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func xattrNames(t *testing.T, path string) (names []string) {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	must(t, err)
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// TestExport applies the layer of every sequence's upper to the lower: that must be the tree that the mount shows.
func TestExport(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("unpacking a layer needs root")
	}
	for name, s := range sequences {
		for mode, o := range modes {
			t.Run(name+"/"+mode, func(t *testing.T) {
				l := sampleLower()
				m := mount(t, l, o)
				ours := side{root: m.dir}
				for _, op := range parseSequence(t, s) {
					if op.kind != "remount" {
						ours.do(op)
					}
				}
				ours.close()
				want := lookAllTimes(t, m.dir)
				m.remount()
				layer := export(t, m.fs)
				if again := export(t, m.fs); !bytes.Equal(layer, again) {
					t.Error("exported twice, got two layers")
				}
				dir := t.TempDir()
				unpack(t, l, dir)
				apply(t, layer, dir)
				wantSame(t, want, lookAllTimes(t, dir))
			})
		}
	}
}

func export(t *testing.T, f *FS) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, f.ExportLayer(context.Background(), &b))
	return b.Bytes()
}

// lookAllTimes is lookAll with modification times.
func lookAllTimes(t *testing.T, root string) map[string]string {
	t.Helper()
	all := lookAll(t, root)
	for name := range all {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(root, name), &st))
		all[name] += fmt.Sprintf(" mtime=%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	delete(all, ".") // a temporary directory has a mode of its own
	return all
}

func TestDiff(t *testing.T) {
	for mode, o := range modes {
		t.Run(mode, func(t *testing.T) {
			m := mount(t, sampleLower(), o)
			diff := func() string {
				var out []string
				for c, err := range m.fs.Diff(context.Background()) {
					must(t, err)
					out = append(out, string(c.Kind)+" "+c.Path)
				}
				return strings.Join(out, "\n")
			}
			if got := diff(); got != "" {
				t.Errorf("nothing has changed, got %s", got)
			}
			must(t, os.WriteFile(m.path("etc/new"), []byte("x"), 0o644))
			must(t, os.Remove(m.path("etc/debian_version")))
			must(t, os.Chmod(m.path("etc/passwd"), 0o600))
			must(t, os.Rename(m.path("opt/app/lib"), m.path("opt/lib")))
			must(t, os.WriteFile(m.path("bin/ls"), []byte("changed"), 0o755))
			must(t, os.Chmod(m.path("big"), 0o600)) // and back
			must(t, os.Chmod(m.path("big"), 0o644))
			must(t, os.RemoveAll(m.path("run")))
			must(t, os.WriteFile(m.path("run"), nil, 0o644))
			want := `changed 
changed bin/busybox
changed bin/cat
changed bin/ls
changed etc
deleted etc/debian_version
added etc/new
changed etc/passwd
changed opt
changed opt/app
deleted opt/app/lib
added opt/lib
added opt/lib/a.py
added opt/lib/b.py
deleted run
added run`
			if got := diff(); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			m.remount()
			if got := diff(); got != want {
				t.Errorf("after remounting got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestMountPoints leaves out what the agent made to mount on, but not what was put there.
func TestMountPoints(t *testing.T) {
	m := mount(t, sampleLower(), Options{})
	point := func(name string, dir bool) {
		t.Helper()
		if dir {
			must(t, os.Mkdir(m.path(name), 0o755))
		} else {
			must(t, os.WriteFile(m.path(name), nil, 0o644))
		}
		must(t, unix.Setxattr(m.path(name), mountPointXattr, []byte("y"), 0))
		st, err := os.Stat(m.path("bin")) // a directory with the times that the lower's directories have
		must(t, err)
		must(t, os.Chtimes(filepath.Dir(m.path(name)), st.ModTime(), st.ModTime()))
	}
	point("etc/hosts", false)
	point("etc/sys", true)
	layerOf := func() string {
		var names []string
		for tr := tar.NewReader(bytes.NewReader(export(t, m.fs))); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return strings.Join(names, " ")
			}
			must(t, err)
			names = append(names, h.Name)
			for x := range h.PAXRecords {
				if strings.Contains(x, "msbfs") {
					t.Errorf("%s has %s in the layer", h.Name, x)
				}
			}
		}
	}
	if got := layerOf(); got != "" {
		t.Errorf("mount points alone make a layer of %s", got)
	}
	must(t, os.WriteFile(m.path("etc/sys/kept"), nil, 0o644))
	must(t, os.WriteFile(m.path("etc/hosts"), []byte("127.0.0.1 me\n"), 0o644))
	if got := layerOf(); got != "etc/ etc/hosts etc/sys/ etc/sys/kept" {
		t.Errorf("with something in them they make a layer of %s", got)
	}
}
