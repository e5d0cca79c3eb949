package tarcopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Unpack puts what r holds at dest: inside it where dest is a directory, else in its place. Owners are whoever
// unpacks; modes and times are the stream's, but for set-id bits. Directories that the stream does not name are made. What is neither
// a file, a directory, a link nor a pipe is left out, and named in the error that Unpack then returns when all else is there.
//
// What comes from somebody who is not trusted is given its first name by as, where that is not "": so that it is nothing else in a directory
// than what was asked for. Nothing is put through a symbolic link of the same stream.
func Unpack(r io.Reader, dest, as string) error {
	dir, rename := filepath.Split(filepath.Clean(dest))
	if st, err := os.Stat(dest); err == nil && st.IsDir() {
		dir, rename = dest, as
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
	u := unpacker{root: root, rename: rename, dirs: map[string]*tar.Header{}, links: map[string]bool{}}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the copy's stream: %w", err)
		}
		if err := u.add(h, t); err != nil {
			return err
		}
	}
	// The sender may pad; it must not block.
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, u.finish())
}

// unpacker puts entries of a tar stream below root.
type unpacker struct {
	root   *os.Root
	rename string                 // the first element of every name; "" leaves it
	dirs   map[string]*tar.Header // their modes and times come last, when nothing is put into them any more
	links  map[string]bool        // symbolic links that were made
	left   int                    // entries that were left out
	first  string                 // of them
}

func (u *unpacker) add(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader { // git archive's comment
		return nil
	}
	if h.Name = place(h.Name, u.rename); !filepath.IsLocal(h.Name) {
		return fmt.Errorf("%q: leaves the destination", h.Name)
	}
	if h.Typeflag == tar.TypeLink {
		if h.Linkname = place(h.Linkname, u.rename); !filepath.IsLocal(h.Linkname) {
			return fmt.Errorf("%q: is a name of what is outside of the destination", h.Name)
		}
	}
	if u.throughLink(h) {
		return fmt.Errorf("%q: leads through a symbolic link of the same copy", h.Name)
	}
	err := unpackOne(u.root, h, content)
	if errors.Is(err, fs.ErrNotExist) && h.Typeflag != tar.TypeLink { // most streams name directories first, some name none
		if err = u.root.MkdirAll(filepath.Dir(h.Name), 0o755); err == nil {
			err = unpackOne(u.root, h, content)
		}
	}
	if errors.Is(err, errKind) {
		if u.left++; u.left == 1 {
			u.first = h.Name
		}
		return nil
	}
	delete(u.links, h.Name)
	if h.Typeflag == tar.TypeSymlink {
		delete(u.dirs, h.Name)
		u.links[h.Name] = true
	}
	if h.Typeflag == tar.TypeDir && h.Name != "." { // the destination itself stays as it is
		u.dirs[h.Name] = &tar.Header{Typeflag: tar.TypeDir, Name: h.Name, Mode: h.Mode, ModTime: h.ModTime}
	}
	return err
}

// throughLink tells whether h is to be put, or what it is another name of is to be found, behind a link that u has made.
func (u *unpacker) throughLink(h *tar.Header) bool {
	behind := func(name string) bool {
		for ; name != "."; name = filepath.Dir(name) {
			if u.links[name] {
				return true
			}
		}
		return false
	}
	if h.Typeflag == tar.TypeLink && behind(filepath.Dir(h.Linkname)) {
		return true
	}
	if h.Typeflag == tar.TypeDir {
		return behind(h.Name)
	}
	return behind(filepath.Dir(h.Name))
}

// finish does what is done last, and says what was left out.
func (u *unpacker) finish() error {
	names := slices.Sorted(maps.Keys(u.dirs))
	for _, name := range slices.Backward(names) { // what is in a directory before it
		h := u.dirs[name]
		if err := errors.Join(u.root.Chmod(name, mode(h)), u.root.Chtimes(name, h.ModTime, h.ModTime)); err != nil {
			return err
		}
	}
	switch u.left {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%q is a device and was left out; all else was copied", u.first)
	}
	return fmt.Errorf("%q and %d more are devices and were left out; all else was copied", u.first, u.left-1)
}

// errKind is why an entry is left out.
var errKind = errors.New("not a file, directory, link or pipe")

// place gives the first element of name the name rename, if there is one.
func place(name, rename string) string {
	name = strings.Trim(name, "/")
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
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return unpackFile(root, h, content)
	case tar.TypeLink:
		if h.Linkname == h.Name {
			return nil
		}
		if err := remove(root, h.Name); err != nil {
			return err
		}
		return root.Link(h.Linkname, h.Name)
	case tar.TypeFifo:
		return unpackPipe(root, h)
	}
	return errKind
}

// unpackPipe makes a named pipe. Its directory is opened first, below root, so that no link leads out of it.
func unpackPipe(root *os.Root, h *tar.Header) error {
	if err := remove(root, h.Name); err != nil {
		return err
	}
	dir, err := root.Open(filepath.Dir(h.Name))
	if err != nil {
		return err
	}
	defer dir.Close()
	name := filepath.Base(h.Name)
	if err := unix.Mkfifoat(int(dir.Fd()), name, 0o600); err != nil {
		return fmt.Errorf("make the pipe %s: %w", h.Name, err)
	}
	if err := root.Chmod(h.Name, mode(h)); err != nil {
		return err
	}
	return root.Chtimes(h.Name, h.ModTime, h.ModTime)
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
