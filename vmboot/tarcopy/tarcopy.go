// Package tarcopy copies a file or a directory as `docker cp` does: one side packs it into a tar stream, the other
// unpacks that. The two sides do not trust each other: what unpacks stays below its destination whatever names and
// symbolic links the stream holds, and makes no devices.
package tarcopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Pack writes what lies at name, and all below it, to w. Names in the stream begin with name's last element, or are those of
// what name contains where it ends in "/."; a symbolic link at name itself is followed, one below is not. Sockets are left out.
func Pack(w io.Writer, name string) error {
	as := base(filepath.Clean(name))
	if strings.HasSuffix(name, "/.") {
		as = "."
	}
	name = filepath.Clean(name)
	top, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	err = filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSocket != 0 {
			return err
		}
		below, err := filepath.Rel(top, file)
		if err != nil {
			return err
		}
		return packOne(t, file, path.Join(as, filepath.ToSlash(below)), d)
	})
	if err != nil {
		return err
	}
	return t.Close()
}

// base is the name under which name travels; the root directory has none of its own.
func base(name string) string {
	if b := filepath.Base(name); b != "/" && b != "." && b != ".." {
		return b
	}
	return "root"
}

func packOne(t *tar.Writer, file, as string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Format = as, tar.FormatPAX
	h.Uname, h.Gname = "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	if !info.Mode().IsRegular() {
		return t.WriteHeader(h)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	// A file that shrinks meanwhile is an error, one that grows is cut where it was.
	_, err = io.CopyN(t, f, h.Size)
	if err == io.EOF {
		err = fmt.Errorf("%s: became shorter while it was copied", file)
	}
	return err
}

// Unpack puts what r holds at dest: inside it where dest is a directory, else in its place. Owners are whoever
// unpacks; modes and times are the stream's, but for set-id bits.
func Unpack(r io.Reader, dest string) error {
	dir, rename := filepath.Split(filepath.Clean(dest))
	if st, err := os.Stat(dest); err == nil && st.IsDir() {
		dir, rename = dest, ""
	} else if strings.HasSuffix(dest, "/") {
		return fmt.Errorf("%s: no such directory", dest)
	}
	if dir == "" {
		dir = "."
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := tar.NewReader(r)
	var dirs []*tar.Header // their modes and times come last, when nothing is put into them any more
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the copy's stream: %w", err)
		}
		h.Name = place(h.Name, rename)
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("%q: leaves the destination", h.Name)
		}
		if err := unpackOne(root, h, t); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir && h.Name != "." { // the destination itself stays as it is
			dirs = append(dirs, h)
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := errors.Join(root.Chmod(dirs[i].Name, mode(dirs[i])), root.Chtimes(dirs[i].Name, dirs[i].ModTime, dirs[i].ModTime)); err != nil {
			return err
		}
	}
	// The sender may pad; it must not block.
	_, err = io.Copy(io.Discard, r)
	return err
}

// place gives the first element of name the name rename, if there is one.
func place(name, rename string) string {
	name = strings.TrimSuffix(name, "/")
	if rename == "" {
		return filepath.Clean(filepath.FromSlash(name))
	}
	_, below, _ := strings.Cut(name, "/")
	return filepath.Join(rename, filepath.FromSlash(below))
}

func mode(h *tar.Header) fs.FileMode { return h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSticky) }

func unpackOne(root *os.Root, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		err := root.Mkdir(h.Name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			if st, serr := root.Stat(h.Name); serr == nil && st.IsDir() {
				return nil
			}
		}
		return err
	case tar.TypeSymlink:
		if err := remove(root, h.Name); err != nil {
			return err
		}
		return root.Symlink(h.Linkname, h.Name)
	case tar.TypeReg:
		return unpackFile(root, h, content)
	}
	return fmt.Errorf("%s: neither a file, a directory nor a symbolic link: not copied", h.Name)
}

func unpackFile(root *os.Root, h *tar.Header, content io.Reader) error {
	if err := remove(root, h.Name); err != nil {
		return err
	}
	f, err := root.OpenFile(h.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Chmod(mode(h)), f.Close()); err != nil {
		return err
	}
	return root.Chtimes(h.Name, h.ModTime, h.ModTime)
}

// remove makes way for a file: for a directory it does not.
func remove(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	return nil
}
