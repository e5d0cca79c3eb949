package ociarchive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// files are the regular files of an archive, by cleaned relative path.
type files interface {
	// open returns a file and its size; the caller closes it. fs.ErrNotExist where there is none.
	open(name string) (io.ReadCloser, int64, error)
	Close() error
}

// directory are the files below a directory. Links that lead out of it are not followed.
type directory struct{ *os.Root }

func (d directory) open(name string) (io.ReadCloser, int64, error) {
	fi, err := d.Stat(name)
	if err != nil {
		return nil, 0, err
	}
	if !fi.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: not a file", name)
	}
	f, err := d.Open(name)
	if err != nil {
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// Bounds of what is read of a tar's list of members. Archives of images have a few per layer.
const (
	maxMembers = 100_000
	maxName    = 4096 // bytes of a member's name or link
	maxLinks   = 8    // links that are followed
)

// tarball are the members of an uncompressed tar file.
type tarball struct {
	f       *os.File
	members map[string]member
}

type member struct {
	off, size int64
	link      string // where the member is a link: what it leads to, cleaned
}

// openTar lists the members of f, which becomes the tarball's.
func openTar(f *os.File) (*tarball, error) {
	t := &tarball{f: f, members: map[string]member{}}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err := t.add(h); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
}

func (t *tarball) add(h *tar.Header) error {
	if len(h.Name) > maxName || len(h.Linkname) > maxName {
		return fmt.Errorf("a name of more than %d bytes", maxName)
	}
	if len(t.members) == maxMembers {
		return fmt.Errorf("more than %d members", maxMembers)
	}
	name := path.Clean(h.Name)
	if !fs.ValidPath(name) {
		return fmt.Errorf("member %q is not inside the archive", h.Name)
	}
	m := member{size: h.Size}
	switch h.Typeflag {
	case tar.TypeReg:
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse") {
				return fmt.Errorf("member %q is sparse", h.Name)
			}
		}
		// The reader takes whole blocks and no more, so the file is where the member's bytes begin.
		off, err := t.f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		m.off = off
	case tar.TypeSymlink: // docker and skopeo link layers that are there twice
		m.link = path.Join(path.Dir(name), h.Linkname)
	case tar.TypeLink:
		m.link = path.Clean(h.Linkname)
	case tar.TypeGNUSparse:
		return fmt.Errorf("member %q is sparse", h.Name)
	default:
		return nil
	}
	if m.link != "" && !fs.ValidPath(m.link) {
		return fmt.Errorf("member %q leads out of the archive", h.Name)
	}
	t.members[name] = m
	return nil
}

func (t *tarball) open(name string) (io.ReadCloser, int64, error) {
	for range maxLinks {
		m, ok := t.members[name]
		if !ok {
			break
		}
		if m.link == "" {
			return io.NopCloser(io.NewSectionReader(t.f, m.off, m.size)), m.size, nil
		}
		name = m.link
	}
	return nil, 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

func (t *tarball) Close() error { return t.f.Close() }

// below are the files in one directory of others: some make the tar of a layout with the directory's own name in front.
type below struct {
	files
	dir string
}

func (b below) open(name string) (io.ReadCloser, int64, error) {
	return b.files.open(path.Join(b.dir, name))
}

// strip returns t without the directory that the whole archive is in, if it is.
func (t *tarball) strip() files {
	for _, mark := range []string{layoutFile, dockerManifest} {
		if _, ok := t.members[mark]; ok {
			return t
		}
	}
	for name := range t.members {
		if dir, base := path.Split(name); base == layoutFile && strings.Count(dir, "/") == 1 {
			return below{t, path.Clean(dir)}
		}
	}
	return t
}
