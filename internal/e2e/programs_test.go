package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// writable is a writable mount of the real image.
type writable struct {
	t               *testing.T
	h               *home
	ref, mnt, upper string
}

func (w *writable) mount() {
	w.t.Helper()
	w.h.must("msb-fs", "mount", "--insecure", "--upper", w.upper, w.ref, w.mnt)
}

// sh runs a script of this host in dir of the mount.
func (w *writable) sh(t *testing.T, dir, script string, env ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-ec", script)
	cmd.Dir = filepath.Join(w.mnt, dir)
	cmd.Env = append(os.Environ(), append([]string{"MNT=" + w.mnt, "GIT_CONFIG_NOSYSTEM=1", "HOME=" + w.h.dir}, env...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%.3000s", err, out)
	}
	return string(out)
}

// TestPrograms has programs that ask much of a file system work on a writable mount.
func TestPrograms(t *testing.T) {
	needRoot(t)
	s := serve(t, registry.Options{})
	ref, _ := pythonImage(t, s, testimage.Gzip)
	w := &writable{t: t, h: newHome(t), ref: ref, mnt: t.TempDir(), upper: t.TempDir()}
	w.mount()
	t.Cleanup(func() { w.h.must("msb-fs", "umount", w.mnt) })
	t.Run("tar", w.tar)
	t.Run("dpkg and apt", w.packages)
	t.Run("git", w.git)
	t.Run("go", w.goBuild)
	t.Run("python", w.python)
	t.Run("SQLite, killed", w.sqlite)
}

// tar unpacks 20,000 files, compares them with the archive, copies and moves them.
func (w *writable) tar(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "tree.tar")
	f, err := os.Create(archive)
	noError(t, err)
	tw := tar.NewWriter(f)
	for d := range 200 {
		noError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("tree/%d/", d), Mode: 0o2750, Gid: d}))
		for i := range 100 {
			h := &tar.Header{Name: fmt.Sprintf("tree/%d/%d", d, i), Mode: int64(0o600 + i%64), Uid: i, Size: int64(i * 31)}
			switch i {
			case 97:
				h = &tar.Header{Typeflag: tar.TypeLink, Name: h.Name, Linkname: fmt.Sprintf("tree/%d/1", d)}
			case 98:
				h = &tar.Header{Typeflag: tar.TypeSymlink, Name: h.Name, Linkname: "../nowhere"}
			case 99:
				h.Mode |= 0o4000
			}
			noError(t, tw.WriteHeader(h))
			_, err := tw.Write(bytes.Repeat([]byte{byte(i)}, int(h.Size)))
			noError(t, err)
		}
	}
	noError(t, tw.Close())
	noError(t, f.Close())
	w.sh(t, "tmp", `tar -xpf "$TAR" && tar -df "$TAR" && cp -a tree/1 copy && diff -r --no-dereference tree/1 copy
		mv tree/2 copy/in && ls copy/in | wc -l | grep -qx 100 && rm -r copy`, "TAR="+archive)
	if n := strings.TrimSpace(w.sh(t, "tmp", "find tree | wc -l")); n != fmt.Sprint(1+200*101-101) {
		t.Errorf("%s files are there", n)
	}
	w.sh(t, "tmp", "rm -r tree")
}

// packages installs a package of many files from a local file, by dpkg and by apt-get, and removes it.
func (w *writable) packages(t *testing.T) {
	out := w.sh(t, "root", `unset TMPDIR # names a directory outside
		mkdir -p p/DEBIAN p/usr/share/many p/usr/bin
		printf 'Package: many\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.com>\nDescription: x\n' >p/DEBIAN/control
		for i in $(seq 300); do echo $i >p/usr/share/many/$i; done
		echo '#!/bin/sh' >p/usr/bin/many; chmod 4755 p/usr/bin/many
		chroot "$MNT" dpkg-deb -Zgzip -b /root/p /root/many.deb
		chroot "$MNT" dpkg -i /root/many.deb
		chroot "$MNT" dpkg -V many
		test "$(stat -c %a "$MNT/usr/bin/many")" = 4755
		chroot "$MNT" dpkg -r many
		test ! -e "$MNT/usr/share/many"
		chroot "$MNT" apt-get -y -o APT::Sandbox::User=root install /root/many.deb
		chroot "$MNT" dpkg -V many
		chroot "$MNT" apt-get -y -o APT::Sandbox::User=root purge many
		chroot "$MNT" dpkg --audit`)
	if strings.Contains(out, "missing") {
		t.Errorf("dpkg misses files:\n%s", out)
	}
}

func (w *writable) git(t *testing.T) {
	w.sh(t, "root", `git init -q -b main r && cd r
		for i in $(seq 5); do mkdir -p d$i; for j in $(seq 60); do echo $i $j >d$i/$j; done; git add .; git -c user.name=a -c user.email=a@b commit -qm $i; done
		git clone -q --no-local . ../c && cd ../c
		git checkout -q HEAD~3 && test ! -e d3 && git checkout -q main && test -e d5/60
		git mv d1 moved && git -c user.name=a -c user.email=a@b commit -qam moved
		git gc -q --prune=now && git fsck --full --strict && test -z "$(git status --porcelain)"`)
}

// goBuild compiles a program with its cache on the mount.
func (w *writable) goBuild(t *testing.T) {
	out := w.sh(t, "root", `mkdir -p g tmp && cd g
		printf 'package main\nfunc main() { println("built") }\n' >main.go && printf 'module m\ngo 1.24\n' >go.mod
		go build -o m . && ./m 2>&1`, "GOFLAGS=", "GOPROXY=off", "GOCACHE="+w.mnt+"/root/gocache", "GOTMPDIR="+w.mnt+"/root/tmp", "CGO_ENABLED=0")
	if !strings.Contains(out, "built") {
		t.Errorf("the program that was built says %q", out)
	}
}

// python makes an environment of its own and compiles the standard library again.
func (w *writable) python(t *testing.T) {
	w.sh(t, "root", `mknod -m 666 "$MNT/root/null" c 1 3
		chroot "$MNT" python3 -m venv --without-pip --copies /root/venv
		chroot "$MNT" /root/venv/bin/python -c 'import json, ssl'
		chroot "$MNT" python3 -m compileall -q -f /usr/lib/python3.11/json /usr/lib/python3.11/email
		rm -rf "$MNT/usr/lib/python3.11/json/__pycache__"
		chroot "$MNT" python3 -c 'import json, email'`)
}

const sqliteWriter = `
import sqlite3, sys
c = sqlite3.connect("/root/db", isolation_level=None)
c.execute("pragma journal_mode=" + sys.argv[1])
c.execute("create table if not exists t(a integer primary key, b text)")
while True:
    c.execute("begin"); c.execute("insert into t(b) values(?)", ("x" * 700,)); c.execute("commit")
    print(c.execute("select count(*) from t").fetchone()[0], flush=True)
`

const sqliteCheck = `
import sqlite3
c = sqlite3.connect("/root/db")
print(c.execute("pragma integrity_check").fetchone()[0], c.execute("select count(*) from t").fetchone()[0])
`

// sqlite kills the daemon while a database is written to: what was committed is there, and the database is whole.
func (w *writable) sqlite(t *testing.T) {
	for i, mode := range []string{"delete", "wal", "truncate"} {
		cmd := exec.Command("chroot", w.mnt, "python3", "-c", sqliteWriter, mode)
		out, err := cmd.StdoutPipe()
		noError(t, err)
		noError(t, cmd.Start())
		last := 0
		lines := bufio.NewScanner(out)
		for n := 0; n < 40*(i+1) && lines.Scan(); n++ {
			fmt.Sscan(lines.Text(), &last)
		}
		noError(t, syscall.Kill(w.h.status().PID, syscall.SIGKILL))
		for lines.Scan() {
			fmt.Sscan(lines.Text(), &last)
		}
		cmd.Wait()
		w.h.must("msb-fs", "umount", w.mnt)
		w.mount()
		var state string
		var rows int
		fmt.Sscan(w.sh(t, "root", `chroot "$MNT" python3 -c "$CHECK"`, "CHECK="+sqliteCheck), &state, &rows)
		if state != "ok" || rows < last || last == 0 {
			t.Errorf("%s: after a kill the database is %q with %d rows, %d had been committed", mode, state, rows, last)
		}
	}
}

// TestConformanceInGuest runs the tests of package cow for a tree that somebody else serves inside a microVM.
func TestConformanceInGuest(t *testing.T) {
	needVM(t)
	dir := t.TempDir()
	cmd := exec.Command("go", "test", "-c", "-o", dir+"/cow.test", "../../cow")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := serve(t, registry.Options{})
	layer, err := testimage.NewLayer(testimage.Gzip, testimage.Dir("empty", 0o755), testimage.Stream("big", 1<<20+123, repeating{}))
	noError(t, err)
	base := busyboxImage(t, testimage.Gzip)
	img, err := testimage.Image(testimage.Config{Env: []string{"PATH=/bin"}}, append(layersOf(t, base), layer)...)
	noError(t, err)
	_, err = s.AddImage("test/conformance:1", img)
	noError(t, err)
	h := newHome(t)
	o := h.launch("run", "--insecure", "-m", "1G", "-v", dir+":/tests:ro", "-e", "COW_TEST_ROOT=/", s.Host()+"/test/conformance:1",
		"/tests/cow.test", "-test.run", "TestInPlace", "-test.v", "-fsx.ops", "600")
	if o.code != 0 || !strings.Contains(o.stdout, "--- PASS: TestInPlace/fsx") {
		t.Errorf("exit status %d\n%s\n%s", o.code, o.stdout[max(0, len(o.stdout)-6000):], o.stderr)
	}
}

// repeating is bytes without an end.
type repeating struct{}

func (repeating) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i / 7)
	}
	return len(p), nil
}

func layersOf(t *testing.T, img v1.Image) (out []*testimage.Layer) {
	t.Helper()
	layers, err := img.Layers()
	noError(t, err)
	for _, l := range layers {
		out = append(out, l.(*testimage.Layer))
	}
	return out
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
