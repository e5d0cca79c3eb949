package hostdir

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/openat"
)

// listing is how far an open directory has been read. Offsets are the host's.
type listing struct {
	mu  sync.Mutex
	at  int64           // offset of the first entry in got
	got []openat.Dirent // read from the host, not yet told
}

const listingBuffer = 8 << 10

func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	if n.only != nil {
		return fuse.OK
	}
	if n.key.kind != unix.S_IFDIR {
		return fuse.ENOTDIR
	}
	path, err := f.path(n)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer unix.Close(path)
	fd, err := openat.Open(path, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fuse.ToStatus(err)
	}
	out.Fh, err = f.keep(n, fd, false)
	return fuse.ToStatus(err)
}

func (f *FS) ReleaseDir(in *fuse.ReleaseIn) { f.release(in.Fh) }

func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	if n.only != nil {
		if in.Offset == 0 {
			out.AddDirEntry(fuse.DirEntry{Name: FileName, Mode: unix.S_IFREG, Ino: n.only.key.ino, Off: 1})
		}
		return fuse.OK
	}
	h, err := f.handle(in.Fh, in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer h.mu.RUnlock()
	if h.n.key.kind != unix.S_IFDIR {
		return fuse.ENOTDIR
	}
	return fuse.ToStatus(h.listing.list(h.fd, int64(in.Offset), out))
}

// list adds the entries of fd from offset on to out, until that is full.
func (l *listing) list(fd int, offset int64, out *fuse.DirEntryList) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if offset != l.at || offset == 0 {
		if _, err := unix.Seek(fd, offset, 0); err != nil {
			return err
		}
		l.at, l.got = offset, nil
	}
	for {
		if len(l.got) == 0 {
			if more, err := l.read(fd); err != nil || !more {
				return err
			}
		}
		d := l.got[0]
		if !out.AddDirEntry(fuse.DirEntry{Name: d.Name, Ino: d.Ino, Mode: uint32(d.Type) << 12, Off: uint64(d.Off)}) {
			return nil
		}
		l.got, l.at = l.got[1:], d.Off
	}
}

func (l *listing) read(fd int) (more bool, err error) {
	return openat.Dirents(fd, make([]byte, listingBuffer), func(d openat.Dirent) bool {
		l.got = append(l.got, d)
		return true
	})
}
