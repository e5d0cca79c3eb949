package testimage

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// Entry is one entry of a tar: any header, and content for a regular file.
type Entry struct {
	tar.Header
	Content io.Reader // its first Header.Size bytes; nil is none
}

// epoch is the time of entries that set none, in seconds since 1970.
const epoch = 1_700_000_000

// Dir is a directory owned by root.
func Dir(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

// File is a regular file, 0644 and owned by root.
func File(name, content string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}, Content: strings.NewReader(content)}
}

// Executable is a regular file with mode 0755.
func Executable(name, content string) Entry {
	e := File(name, content)
	e.Mode = 0o755
	return e
}

// Stream is a regular file of size bytes read from r, which may be larger than memory.
func Stream(name string, size int64, r io.Reader) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}, Content: r}
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// Hardlink is another name of an earlier entry.
func Hardlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

// CharDevice is a character device.
func CharDevice(name string, major, minor int64) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: name, Mode: 0o644, Devmajor: major, Devminor: minor}}
}

// Fifo is a named pipe.
func Fifo(name string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: name, Mode: 0o644}}
}

// Whiteout deletes name of the layers below (https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts).
func Whiteout(name string) Entry { return File(path.Join(path.Dir(name), ".wh."+path.Base(name)), "") }

// Opaque deletes everything that the layers below have in the directory dir.
func Opaque(dir string) Entry { return File(path.Join(dir, ".wh..wh..opq"), "") }

// Owned is e with an owner.
func (e Entry) Owned(uid, gid int) Entry {
	e.Uid, e.Gid = uid, gid
	return e
}

// Perm is e with a mode, setuid, setgid and sticky bits included.
func (e Entry) Perm(mode int64) Entry {
	e.Mode = mode
	return e
}

// At is e with a modification time.
func (e Entry) At(t time.Time) Entry {
	e.ModTime = t
	return e
}

// Xattr is e with an extended attribute more.
func (e Entry) Xattr(name, value string) Entry {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	return e
}

// WriteTar writes entries as a tar.
func WriteTar(w io.Writer, entries ...Entry) error {
	t := tar.NewWriter(w)
	for _, e := range entries {
		h := e.Header
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(epoch, 0)
		}
		if h.ModTime.Nanosecond() != 0 {
			h.Format = tar.FormatPAX
		}
		if err := t.WriteHeader(&h); err != nil {
			return fmt.Errorf("write %s: %w", e.Name, err)
		}
		if e.Content == nil {
			continue
		}
		if _, err := io.Copy(t, io.LimitReader(e.Content, h.Size)); err != nil {
			return fmt.Errorf("write %s: %w", e.Name, err)
		}
	}
	return t.Close()
}
