package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pkg/xattr"
)

// file is everything of a file that two trees must agree on.
type file struct {
	mode     uint32
	uid, gid uint32
	rdev     uint64
	size     int64 // of regular files
	mtime    syscall.Timespec
	target   string // of symlinks
	sum      [32]byte
	xattrs   string
	links    string // the names of the same file, when there is more than one
}

// diff says in what two trees differ, at most 50 lines.
func diff(t *testing.T, a, b string) []string {
	t.Helper()
	ta, tb := tree(t, a), tree(t, b)
	var out []string
	for name, fa := range ta {
		fb, ok := tb[name]
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("%s is only in %s", name, a))
		case fa != fb:
			out = append(out, fmt.Sprintf("%s: %+v, %+v", name, fa, fb))
		}
	}
	for name := range tb {
		if _, ok := ta[name]; !ok {
			out = append(out, fmt.Sprintf("%s is only in %s", name, b))
		}
	}
	slices.Sort(out)
	if len(ta) < 2 {
		out = append(out, a+" is empty")
	}
	return out[:min(len(out), 50)]
}

func tree(t *testing.T, root string) map[string]file {
	t.Helper()
	out := map[string]file{}
	inodes := map[uint64][]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		f := file{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: st.Mtim}
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			f.size = st.Size
			if f.sum, err = sum(path); err != nil {
				return err
			}
		case syscall.S_IFLNK:
			if f.target, err = os.Readlink(path); err != nil {
				return err
			}
		case syscall.S_IFCHR, syscall.S_IFBLK:
			f.rdev = st.Rdev
		}
		if st.Mode&syscall.S_IFMT != syscall.S_IFDIR && st.Nlink > 1 {
			inodes[st.Ino] = append(inodes[st.Ino], name)
		}
		if f.xattrs, err = xattrs(path); err != nil {
			return err
		}
		out[name] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range inodes {
		slices.Sort(names)
		for _, n := range names {
			f := out[n]
			f.links = strings.Join(names, " ")
			out[n] = f
		}
	}
	return out
}

func sum(path string) (s [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return s, err
	}
	return [32]byte(h.Sum(nil)), nil
}

func xattrs(path string) (string, error) {
	names, err := xattr.LList(path)
	if errors.Is(err, syscall.ENOTSUP) {
		return "", nil // what a file system answers that has none at all
	}
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	var out strings.Builder
	for _, n := range names {
		v, err := xattr.LGet(path, n)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "%s=%q ", n, v)
	}
	return out.String(), nil
}
