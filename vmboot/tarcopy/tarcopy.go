// Package tarcopy copies a file or a directory as `docker cp` does: one side packs it into a tar stream, the other
// unpacks that. The two sides do not trust each other: what unpacks stays below its destination whatever names and
// symbolic links the stream holds, and makes no devices. Names of one file stay names of one file, pipes stay pipes.
package tarcopy

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Pack writes what lies at name, and all below it, to w. Names in the stream begin with name's last element, or are those of
// what name contains where it ends in "/."; a symbolic link at name itself is followed, one below is not. Sockets are left out,
// as by tar(1): they are nothing without the program that made them.
func Pack(w io.Writer, name string) error {
	as := First(name)
	name = filepath.Clean(name)
	top, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	p := packer{to: t, first: map[inode]string{}}
	err = filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSocket != 0 {
			return err
		}
		below, err := filepath.Rel(top, file)
		if err != nil {
			return err
		}
		if below = filepath.ToSlash(below); below == "." {
			return p.add(file, as, d)
		}
		return p.add(file, as+"/"+below, d) // "./x" of what is only contained: whoever renames the first element needs one
	})
	if err != nil {
		return err
	}
	return t.Close()
}

// First is the first element of the names in a stream that packs name: "." of what it contains.
func First(name string) string {
	if strings.HasSuffix(name, "/.") {
		return "."
	}
	return base(filepath.Clean(name))
}

// base is the name under which name travels; the root directory has none of its own.
func base(name string) string {
	if b := filepath.Base(name); b != "/" && b != "." && b != ".." {
		return b
	}
	return "root"
}

// packer writes files to a tar stream.
type packer struct {
	to    *tar.Writer
	first map[inode]string // the name in the stream under which a file of several names was written
}

type inode struct{ dev, ino uint64 }

func (p *packer) add(file, as string, d fs.DirEntry) error {
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
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 && !info.IsDir() {
		id := inode{st.Dev, st.Ino}
		if first, ok := p.first[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.to.WriteHeader(h)
		}
		p.first[id] = as
	}
	if !info.Mode().IsRegular() {
		return p.to.WriteHeader(h)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.to.WriteHeader(h); err != nil {
		return err
	}
	// A file that shrinks meanwhile is an error, one that grows is cut where it was.
	_, err = io.CopyN(p.to, f, h.Size)
	if err == io.EOF {
		err = fmt.Errorf("%s: became shorter while it was copied", file)
	}
	return err
}
