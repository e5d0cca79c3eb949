package daemon

import (
	"context"
	"fmt"
	"io"
	"path"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
)

// stat describes what is at p in tree, itself where it is a symlink.
func stat(ctx context.Context, tree *fs.Tree, p string) (api.File, error) {
	id, attr, err := tree.Walk(ctx, p, false)
	if err != nil {
		return api.File{}, inImage(p, err)
	}
	f, err := describeFile(ctx, tree, p, id, attr)
	if err != nil {
		return f, inImage(p, err)
	}
	names, err := tree.Listxattr(ctx, id)
	if err != nil {
		return f, inImage(p, err)
	}
	for _, name := range names {
		value, err := tree.Getxattr(ctx, id, name)
		if err != nil {
			return f, inImage(p, err)
		}
		if f.Xattrs == nil {
			f.Xattrs = map[string][]byte{}
		}
		f.Xattrs[name] = value
	}
	return f, nil
}

func describeFile(ctx context.Context, tree *fs.Tree, p string, id fs.ID, a fs.Attr) (api.File, error) {
	f := api.File{Path: p, Mode: a.Mode, Nlink: a.Nlink, UID: a.UID, GID: a.GID, Rdev: a.Rdev, Size: a.Size,
		Mtime: time.Unix(a.Mtime.Sec, int64(a.Mtime.Nsec)).UTC(), Inode: id}
	if !utf8.ValidString(p) {
		f.Raw = []byte(p)
	}
	if a.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		return f, nil
	}
	var err error
	f.Link, err = tree.Readlink(ctx, id)
	if !utf8.ValidString(f.Link) {
		f.RawLink = []byte(f.Link)
	}
	return f, err
}

// list hands fn what is in directory p, or p itself when it is none; everything below it too if recursive.
func list(ctx context.Context, tree *fs.Tree, p string, recursive bool, fn func(api.File) error) error {
	id, attr, err := tree.Walk(ctx, p, true)
	if err != nil {
		return inImage(p, err)
	}
	if attr.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		f, err := describeFile(ctx, tree, p, id, attr)
		if err != nil {
			return inImage(p, err)
		}
		return fn(f)
	}
	return listDir(ctx, tree, id, path.Clean("/"+p), recursive, fn)
}

func listDir(ctx context.Context, tree *fs.Tree, dir fs.ID, p string, recursive bool, fn func(api.File) error) error {
	type child struct {
		id fs.ID
		f  api.File
	}
	var children []child
	var failed error
	err := tree.ReadDir(ctx, dir, 0, func(name string, id fs.ID, a fs.Attr) bool {
		f, err := describeFile(ctx, tree, path.Join(p, name), id, a)
		children, failed = append(children, child{id, f}), err
		return err == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return inImage(p, err)
	}
	for _, c := range children {
		if err := fn(c.f); err != nil {
			return err
		}
		if recursive && c.f.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			if err := listDir(ctx, tree, c.id, c.f.Path, true, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// errNotRegular is of a device, pipe or socket, whose content is not in the image.
var errNotRegular = fmt.Errorf("not a regular file: %w", syscall.EINVAL)

// copyBuffer is how much of a file is read at a time, bytes: enough to keep a link busy.
const copyBuffer = 1 << 20

// cat copies the regular file at p to w.
func cat(ctx context.Context, tree *fs.Tree, p string, w io.Writer) error {
	id, attr, err := tree.Walk(ctx, p, true)
	if err != nil {
		return inImage(p, err)
	}
	if t := attr.Mode & syscall.S_IFMT; t != syscall.S_IFREG {
		err := errNotRegular
		if t == syscall.S_IFDIR {
			err = syscall.EISDIR
		}
		return inImage(p, err)
	}
	buf := make([]byte, min(copyBuffer, max(attr.Size, 1)))
	for off := int64(0); off < attr.Size; {
		n, err := tree.ReadAt(ctx, id, buf[:min(int64(len(buf)), attr.Size-off)], off)
		if err != nil {
			return inImage(p, err)
		}
		if n == 0 {
			return inImage(p, io.ErrUnexpectedEOF)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

func inImage(p string, err error) error {
	return fmt.Errorf("%s in the image: %w", path.Clean("/"+p), err)
}
