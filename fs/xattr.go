package fs

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/microsandbox/msb-fs/layer"
)

// Getxattr returns an extended attribute's value, ENODATA when id has none of that name.
func (t *Tree) Getxattr(ctx context.Context, id ID, name string) (value []byte, err error) {
	err = t.withXattr(ctx, id, name, func(v []byte) { value = bytes.Clone(v) })
	return value, err
}

// withXattr calls fn with an attribute's value, which is not to be kept.
func (t *Tree) withXattr(ctx context.Context, id ID, name string, fn func([]byte)) error {
	f := t.flat.Load()
	if f == nil {
		err := t.growEntry(ctx, id, func(e *layer.Entry) error {
			if e != nil {
				for _, x := range slices.Backward(e.Xattrs) {
					if x.Name == name {
						fn(x.Value)
						return nil
					}
				}
			}
			return syscall.ENODATA
		})
		if !errors.Is(err, errSealed) {
			return err
		}
		f = t.flat.Load()
	}
	n := f.get(id)
	if n == nil {
		return syscall.ESTALE
	}
	v, ok := f.xattr(n, name)
	if !ok {
		return syscall.ENODATA
	}
	fn(v)
	runtime.KeepAlive(f)
	return nil
}

// Listxattr returns the names of a file's extended attributes, sorted.
func (t *Tree) Listxattr(ctx context.Context, id ID) (names []string, err error) {
	f := t.flat.Load()
	if f == nil {
		err = t.growEntry(ctx, id, func(e *layer.Entry) error {
			names = nil
			if e != nil {
				for _, x := range e.Xattrs {
					names = append(names, x.Name)
				}
			}
			return nil
		})
		if !errors.Is(err, errSealed) {
			slices.Sort(names)
			return slices.Compact(names), err
		}
		f = t.flat.Load()
	}
	n := f.get(id)
	if n == nil {
		return nil, syscall.ESTALE
	}
	for _, x := range run(f.xattrs, n.Xattr, n.Xattrs) {
		names = append(names, strings.Clone(f.str(x.Name, x.NameLen)))
	}
	runtime.KeepAlive(f)
	return names, nil
}

// plain reports whether it is known that no file has an extended attribute.
func (t *Tree) plain() bool {
	f := t.flat.Load()
	return f != nil && len(f.xattrs) == 0
}
