package cow

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ExportLayer writes the upper as an OCI layer, an uncompressed tar: what was added or changed, sorted by path and with
// the directories above it, whiteouts for what was deleted, xattrs, hard links. The same tree gives the same bytes. Sockets
// have no form in a tar and are left out. See https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md
func (f *FS) ExportLayer(ctx context.Context, w io.Writer) error {
	e := exporter{f: f, ctx: ctx, tar: tar.NewWriter(w), first: make(map[uint64]string), dirs: map[string]bool{"": true}}
	for c, err := range f.changes(ctx) {
		if err == nil {
			err = e.change(c)
		}
		if err != nil {
			return fmt.Errorf("export layer: /%s: %w", c.path, err)
		}
	}
	return e.tar.Close()
}

type exporter struct {
	f     *FS
	ctx   context.Context
	tar   *tar.Writer
	first map[uint64]string // the path that holds the content of a file with several, by id
	dirs  map[string]bool   // directories that have been written
}

func (e *exporter) change(c change) error {
	if err := e.parents(c.path); err != nil {
		return err
	}
	if c.kind == Deleted {
		return e.hide(path.Join(path.Dir(c.path), whPrefix+path.Base(c.path)))
	}
	if c.n.kind == unix.S_IFSOCK {
		return nil
	}
	if err := e.entry(c.path, c.n); err != nil {
		return err
	}
	if c.opaque {
		return e.hide(path.Join(c.path, opaqueFile))
	}
	return nil
}

// hide writes a whiteout. Its times are none: there is nothing they could be of.
func (e *exporter) hide(name string) error {
	return e.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// parents writes the directories above a path that the layer has not yet: an unpacker would make up their attributes.
func (e *exporter) parents(p string) error {
	n := e.f.root
	var held []*node
	defer func() {
		e.f.tree.Lock()
		defer e.f.tree.Unlock()
		for i := len(held) - 1; i >= 0; i-- {
			e.f.drop(held[i])
		}
	}()
	dir := path.Dir(p)
	if p == "" || dir == "." || e.dirs[dir] {
		return nil
	}
	at := ""
	for _, name := range strings.Split(dir, "/") {
		at = path.Join(at, name)
		b := e.f.beneath(e.ctx, n, name)
		e.f.tree.Lock()
		_, kid, err := e.f.held(n, name, &b)
		e.f.tree.Unlock()
		if err != nil {
			return err
		}
		held = append(held, kid)
		n = kid
		if !e.dirs[at] {
			if err := e.entry(at, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry writes a file, or a link to where it has been written.
func (e *exporter) entry(name string, n *node) error {
	var a fuse.Attr
	e.f.tree.RLock()
	_, err := e.f.attr(e.ctx, n, &a)
	e.f.tree.RUnlock()
	if err != nil {
		return err
	}
	h := &tar.Header{
		Name: name, Mode: int64(a.Mode & 07777), Uid: int(a.Uid), Gid: int(a.Gid),
		ModTime: time.Unix(int64(a.Mtime), int64(a.Mtimensec)), Format: tar.FormatPAX,
	}
	if n.kind != unix.S_IFDIR && a.Nlink > 1 {
		if first, ok := e.first[n.id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return e.tar.WriteHeader(h)
		}
		e.first[n.id] = name
	}
	xattrs, err := e.f.xattrsOf(e.ctx, n)
	if err != nil {
		return err
	}
	for _, x := range xattrs {
		if x.name == mountPointXattr {
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+x.name] = x.value
	}
	switch n.kind {
	case unix.S_IFDIR:
		e.dirs[name] = true
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		if name == "" {
			h.Name = "./"
		}
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, int64(a.Size)
		if err := e.tar.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.CopyBuffer(e.tar, io.NewSectionReader(nodeReader{e.ctx, e.f, n}, 0, h.Size), make([]byte, 1<<20))
		return err
	case unix.S_IFLNK:
		target, err := e.f.readlink(e.ctx, n)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(target)
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if n.kind == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(major(a.Rdev)), int64(minor(a.Rdev))
	}
	return e.tar.WriteHeader(h)
}

// nodeReader reads a file's content.
type nodeReader struct {
	ctx context.Context
	f   *FS
	n   *node
}

func (r nodeReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.f.readAt(r.ctx, r.n, p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}
