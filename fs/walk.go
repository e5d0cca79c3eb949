package fs

import (
	"context"
	"strings"
	"syscall"
)

// maxSymlinks is how many symlinks a path may go through, Linux's own limit (path_resolution(7)).
const maxSymlinks = 40

// Walk resolves a path inside the tree, absolute or from the root alike. Symlinks are followed, a last one only if follow
// says so, and never lead out of the tree: ".." of the root is the root. Too many are ELOOP.
func (t *Tree) Walk(ctx context.Context, path string, follow bool) (ID, Attr, error) {
	if len(path) > maxPath {
		return 0, Attr{}, syscall.ENAMETOOLONG
	}
	at, a := Root, Attr{Mode: syscall.S_IFDIR}
	var err error
	for links := 0; err == nil; {
		path = strings.TrimLeft(path, "/")
		if path == "" {
			if at == Root {
				a, err = t.Attr(ctx, at)
			}
			return at, a, err
		}
		part, rest, more := strings.Cut(path, "/")
		path = rest
		if !a.IsDir() {
			return 0, Attr{}, syscall.ENOTDIR
		}
		dir := at
		switch part {
		case ".":
			continue
		case "..":
			at = t.Parent(at)
			a, err = t.Attr(ctx, at)
			continue
		}
		if at, a, err = t.Lookup(ctx, dir, part); err != nil {
			break
		}
		if a.Mode&syscall.S_IFMT != syscall.S_IFLNK || !more && !follow {
			if more && !a.IsDir() {
				return 0, Attr{}, syscall.ENOTDIR
			}
			continue
		}
		if links++; links > maxSymlinks {
			return 0, Attr{}, syscall.ELOOP
		}
		var target string
		if target, err = t.Readlink(ctx, at); err != nil {
			break
		}
		if target == "" {
			return 0, Attr{}, syscall.ENOENT
		}
		if len(target)+len(path) > maxPath {
			return 0, Attr{}, syscall.ENAMETOOLONG
		}
		at = dir
		if target[0] == '/' {
			at = Root
		}
		if more {
			target += "/" + path
		}
		path = target
		a, err = t.Attr(ctx, at)
	}
	return 0, Attr{}, err
}
