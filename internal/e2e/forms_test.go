package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/pkg/xattr"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// made is how a program that is not ours writes a tar, or packs one.
type made struct {
	name   string
	needs  string // the program
	script string // of sh: a tar of the directory $SRC, or $IN packed, goes to stdout; $TMP is a directory
	media  types.MediaType
	// refused is a part of the one line with which a pull fails; "" where it is as umoci unpacks it.
	refused string
}

// tars are the tars that programs write, by their options.
var tars = []made{
	{name: "GNU tar, posix", needs: "tar", script: `tar -C $SRC --format=posix --xattrs --xattrs-include='*' -c .`},
	{name: "GNU tar, gnu", needs: "tar", script: `tar -C $SRC --format=gnu -c .`},
	{name: "GNU tar, oldgnu, with label", needs: "tar", script: `tar -C $SRC --format=oldgnu -V label -c .`},
	{name: "GNU tar, ustar", needs: "tar", script: `tar -C $SRC --format=ustar --exclude=./long -c .`},
	{name: "GNU tar, v7", needs: "tar", script: `tar -C $SRC --format=v7 --exclude=./long --exclude=./dev -c .`},
	{name: "GNU tar, sparse gnu", needs: "tar", script: `tar -C $SRC --format=gnu -S -c .`},
	{name: "GNU tar, sparse 0.0", needs: "tar", script: `tar -C $SRC --format=posix -S --sparse-version=0.0 -c .`},
	{name: "GNU tar, sparse 0.1", needs: "tar", script: `tar -C $SRC --format=posix -S --sparse-version=0.1 -c .`},
	{name: "GNU tar, sparse 1.0", needs: "tar", script: `tar -C $SRC --format=posix -S --sparse-version=1.0 -c .`},
	{name: "GNU tar, absolute names", needs: "tar", script: `cd $SRC && tar --transform='s,^\./,/,' --format=gnu -c .`},
	{name: "GNU tar, appended to", needs: "tar", script: `cd $SRC && tar --format=gnu --no-recursion -cf $TMP/t . && tar --format=gnu -rf $TMP/t ./small && tar --format=gnu -rf $TMP/t ./dir ./small && cat $TMP/t`},
	{name: "GNU tar, incremental", needs: "tar", script: `tar -C $SRC --format=gnu -g /dev/null -c .`, refused: "unknown tar type"},
	{name: "bsdtar, pax", needs: "bsdtar", script: `bsdtar -C $SRC --format=pax -c .`},
	{name: "bsdtar, gnutar", needs: "bsdtar", script: `bsdtar -C $SRC --format=gnutar -c .`},
	{name: "bsdtar, ustar", needs: "bsdtar", script: `bsdtar -C $SRC --format=ustar --exclude=./long -c .`},
	{name: "busybox tar", needs: "busybox", script: `busybox tar -C $SRC -c .`},
	{name: "python, pax", needs: "/usr/bin/python3", script: `/usr/bin/python3 -c 'import os,sys,tarfile; tarfile.open(fileobj=sys.stdout.buffer,mode="w|",format=tarfile.PAX_FORMAT).add(os.environ["SRC"],".")'`},
	{name: "python, gnu", needs: "/usr/bin/python3", script: `/usr/bin/python3 -c 'import os,sys,tarfile; tarfile.open(fileobj=sys.stdout.buffer,mode="w|",format=tarfile.GNU_FORMAT).add(os.environ["SRC"],".")'`},
}

// packs are what programs make of a tar.
var packs = []made{
	{name: "gzip -1", needs: "gzip", script: `gzip -1 <$IN`},
	{name: "gzip -9 --rsyncable, with a name", needs: "gzip", script: `cp $IN $TMP/layer.tar && gzip -9 --rsyncable -c $TMP/layer.tar`},
	{name: "gzip, three members", needs: "gzip", script: `head -c 1000001 $IN | gzip -1; tail -c +1000002 $IN | head -c 1 | gzip; tail -c +1000003 $IN | gzip -6; gzip </dev/null`},
	{name: "gzip, padded with zeros", needs: "gzip", script: `gzip <$IN; head -c 5000 /dev/zero`},
	{name: "busybox gzip", needs: "busybox", script: `busybox gzip <$IN`},
	{name: "pigz", needs: "pigz", script: `pigz -p 3 -b 128 <$IN`},
	{name: "pigz, independent blocks", needs: "pigz", script: `pigz -p 3 -i -1 <$IN`},
	{name: "pigz, stored", needs: "pigz", script: `pigz -0 <$IN`},
	{name: "python gzip", needs: "/usr/bin/python3", script: `/usr/bin/python3 -c 'import gzip,os,sys; sys.stdout.buffer.write(gzip.compress(open(os.environ["IN"],"rb").read(),6))'`},
	{name: "bsdtar gzip", needs: "bsdtar", script: `bsdtar -C $SRC -cz --format=pax --options gzip:compression-level=7 . >$TMP/z && gzip -dc $TMP/z >$IN && cat $TMP/z`},
	{name: "zstd -19 --long", needs: "zstd", script: `zstd -q -19 --long=27 <$IN`, media: types.OCILayerZStd},
	{name: "zstd, of unknown length", needs: "zstd", script: `cat $IN | zstd -q -T2 --no-check`, media: types.OCILayerZStd},
	{name: "zstd --adapt --rsyncable", needs: "zstd", script: `cat $IN | zstd -q -T2 --adapt --rsyncable`, media: types.OCILayerZStd},
	{name: "zstd, window of 128 MiB", needs: "zstd", script: `cat $IN | zstd -q -3 --long=27`, media: types.OCILayerZStd},
	{name: "zstd, window of 2 GiB", needs: "zstd", script: `cat $IN | zstd -q -3 --ultra --long=31`, media: types.OCILayerZStd, refused: "window is larger than"},
	{name: "zstd, many frames and skippable ones", needs: "zstd", media: types.OCILayerZStd,
		script: `printf '\120\052\115\030\003\000\000\000abc'; split -b 700000 $IN $TMP/part. && for p in $TMP/part.*; do zstd -q -c $p; printf '\137\052\115\030\000\000\000\000'; done`},
	{name: "pzstd", needs: "pzstd", script: `pzstd -q -p 2 -c $IN`, media: types.OCILayerZStd},
	{name: "zstd with a dictionary", needs: "zstd", script: `head -c 300000 $IN | split -b 1000 -a 3 - $TMP/s. && zstd -q --train $TMP/s.* -o $TMP/dict --maxdict=4000 >&2; zstd -q -D $TMP/dict <$IN`,
		media: types.OCILayerZStd, refused: "needs a dictionary"},
	{name: "uncompressed", needs: "cat", script: `cat $IN`, media: types.OCIUncompressedLayer},
	{name: "xz", needs: "xz", script: `xz -0 <$IN`, refused: "neither gzip nor zstd nor a tar"},
}

// oddTree is a directory of files of all kinds.
func oddTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	noise := rand.NewChaCha8([32]byte{3})
	bytesOf := func(n int) []byte { // half of them can be compressed
		b := make([]byte, n)
		noise.Read(b)
		for i := 0; i+2000 < n; i += 4000 {
			copy(b[i:i+2000], bytes.Repeat([]byte(fmt.Sprintf("line %d\n", i%7)), 400))
		}
		return b
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, b []byte, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, b, 0o600))
		check(os.Chmod(path, mode))
		return path
	}
	for _, n := range []int{0, 1, 511, 512, 513, 10240, 131071} {
		write(fmt.Sprintf("small/%d", n), bytesOf(n), 0o644)
	}
	write("dir/large", bytesOf(5<<20+77), 0o755)
	write("dir/setuid", bytesOf(100), 0o755|os.ModeSetuid)
	write("dir/sub/with space", bytesOf(5000), 0o640)
	write("dir/\xe4\xf6 latin1", bytesOf(50), 0o600)
	write("dir/ünïcode ☃", bytesOf(60), 0o600)
	write("long/"+strings.Repeat("d", 200)+"/"+strings.Repeat("e", 200)+"/"+strings.Repeat("f", 255), bytesOf(300), 0o600)
	check(os.Symlink(strings.Repeat("../", 60)+"target", filepath.Join(dir, "long", "link")))
	check(os.Symlink("../small/1", filepath.Join(dir, "dir", "link")))
	check(os.Link(filepath.Join(dir, "dir", "large"), filepath.Join(dir, "small", "hard")))
	check(os.MkdirAll(filepath.Join(dir, "dev"), 0o1777))
	check(syscall.Mkfifo(filepath.Join(dir, "dev", "fifo"), 0o644))
	check(syscall.Mknod(filepath.Join(dir, "dev", "null"), syscall.S_IFCHR|0o666, 1<<8|3))
	check(syscall.Mknod(filepath.Join(dir, "dev", "disk"), syscall.S_IFBLK|0o660, 8<<8|17))
	sparse := write("dir/sparse", bytesOf(5000), 0o644)
	f, err := os.OpenFile(sparse, os.O_WRONLY, 0)
	check(err)
	for i := range 6 { // more pieces than an old GNU header holds
		_, err = f.WriteAt(bytesOf(4096), int64(i+1)<<20)
		check(err)
	}
	check(f.Truncate(9 << 20))
	check(f.Close())
	check(xattr.Set(filepath.Join(dir, "small", "513"), "user.note", []byte("of\x00bytes")))
	check(os.Chown(filepath.Join(dir, "small", "1"), 1234, 70000))
	old := time.Unix(-86400, 0)
	check(os.Chtimes(filepath.Join(dir, "small", "512"), old, old))
	return dir
}

// make runs m over dir or the file in, and returns what it wrote.
func (m *made) make(t *testing.T, src, in string) []byte {
	t.Helper()
	if _, err := exec.LookPath(m.needs); err != nil {
		t.Skipf("%s is not installed", m.needs)
	}
	cmd := exec.Command("sh", "-ec", m.script)
	cmd.Env = append(os.Environ(), "SRC="+src, "IN="+in, "TMP="+t.TempDir(), "LC_ALL=C.UTF-8")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && len(out) == 0 {
		t.Fatalf("%s: %v\n%s", m.name, err, stderr.String())
	}
	return out
}

// TestMadeElsewhere mounts layers that other programs have written: streamed, by the index that is left, and once more
// when nothing of them is in the cache but that index.
func TestMadeElsewhere(t *testing.T) {
	needRoot(t) // to unpack with owners
	src := oddTree(t)
	s := serve(t, registry.Options{})
	h := newHome(t)
	for i, m := range tars {
		t.Run(m.name, func(t *testing.T) {
			h := *h
			h.t = t
			tarball := m.make(t, src, "")
			h.asUnpacked(s, fmt.Sprintf("made/tar%d:1", i), m.refused, testimage.RawLayer(gzipOf(t, tarball), tarball, types.OCILayer), unpacked(t, tarball, m.refused))
		})
	}
	in := filepath.Join(t.TempDir(), "in.tar")
	for i, m := range packs {
		t.Run(m.name, func(t *testing.T) {
			h := *h
			h.t = t
			tarball := tars[0].make(t, src, "")
			if err := os.WriteFile(in, tarball, 0o600); err != nil {
				t.Fatal(err)
			}
			blob := m.make(t, src, in)
			tarball, err := os.ReadFile(in) // a packer may have written its own
			if err != nil {
				t.Fatal(err)
			}
			if m.media == "" {
				m.media = types.OCILayer
			}
			h.asUnpacked(s, fmt.Sprintf("made/pack%d:1", i), m.refused, testimage.RawLayer(blob, tarball, m.media), unpacked(t, tarball, m.refused))
		})
	}
	h.must("msb-fs", "verify")
}

// unpacked is the directory into which GNU tar unpacks a layer. (umoci 0.4 knows neither labels nor old sparse files.)
func unpacked(t *testing.T, tarball []byte, refused string) string {
	t.Helper()
	if refused != "" {
		return ""
	}
	dir := t.TempDir()
	cmd := exec.Command("tar", "-C", dir, "-xpf", "-", "--same-owner", "--numeric-owner", "--delay-directory-restore", "--xattrs", "--xattrs-include=*")
	cmd.Stdin = bytes.NewReader(tarball)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return dir
}

// asUnpacked mounts an image of one layer, which has to look like the directory want or to be refused.
func (h *home) asUnpacked(s *registry.Server, name, refused string, l *testimage.Layer, want string) {
	h.t.Helper()
	img, err := testimage.Image(testimage.Config{}, l)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := s.AddImage(name, img); err != nil {
		h.t.Fatal(err)
	}
	ref := s.Host() + "/" + name
	if refused != "" {
		o := h.fs("pull", ref)
		if o.code != 1 || !strings.Contains(o.stderr, refused) || strings.Count(strings.TrimSpace(o.stderr), "\n") > 0 {
			h.t.Errorf("want a line with %q: %v", refused, o)
		}
		return
	}
	mnt := h.t.TempDir()
	for _, when := range []string{"while it streams", "by its index"} {
		h.must("msb-fs", "mount", "--ro", ref, mnt)
		for _, d := range diff(h.t, want, mnt) {
			if when == "by its index" || !strings.HasPrefix(d, ".: ") { // the root is not waited for for long
				h.t.Errorf("%s: %s", when, d)
			}
		}
		h.must("msb-fs", "umount", mnt)
		h.must("msb-fs", "prune", "--chunks")
	}
}
