package fs

import (
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// StatusDir is the name of the hidden directory in a mount's root that WithStatus adds: it can be opened and is not listed,
// so that who copies or compares the tree does not meet it.
const StatusDir = ".msb-fs"

// The IDs of the hidden directory and of what is in it are above any of a tree or an upper.
const (
	statusDir   ID = 1 << 62
	statusFirst ID = statusDir + 1
)

// WithStatus returns raw with a hidden directory in its root, whose files are what files returns at that moment, by name. An
// entry of that name in the root of raw itself is covered by it.
//
// Each lookup of a file takes a new snapshot with an ID of its own: without OPEN, a kernel that has cached a file's pages would
// never ask for newer ones.
func WithStatus(raw fuse.RawFileSystem, files func() map[string][]byte) fuse.RawFileSystem {
	return &statusFS{RawFileSystem: raw, files: files, start: time.Now(), taken: map[ID]*statusFile{}}
}

// statusFS answers for the hidden directory and hands on everything else.
type statusFS struct {
	fuse.RawFileSystem
	files func() map[string][]byte
	start time.Time

	mu    sync.Mutex
	taken map[ID]*statusFile // that the kernel knows
	last  ID
	full  int // of taken, those whose data is kept; no more than maxSnapshots
}

// statusFile is a file's content as one lookup found it.
type statusFile struct {
	data    []byte
	at      time.Time
	lookups uint64
}

// maxSnapshots bounds what somebody who looks up without end makes us keep; the oldest then read as empty.
const maxSnapshots = 1024

func (s *statusFS) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	switch {
	case in.NodeId == Root && name == StatusDir:
		out.NodeId, out.EntryValid, out.AttrValid = statusDir, forever, forever
		s.dirAttr(&out.Attr)
		return fuse.OK
	case in.NodeId == statusDir:
		data, ok := s.files()[name]
		if !ok {
			return fuse.ENOENT // with no validity: it may be there the next time
		}
		s.enter(data, out)
		return fuse.OK
	case in.NodeId >= statusFirst:
		return fuse.ENOTDIR
	}
	return s.RawFileSystem.Lookup(cancel, in, name, out)
}

// enter takes a snapshot.
func (s *statusFS) enter(data []byte, out *fuse.EntryOut) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last+1, statusFirst)
	if s.full++; s.full > maxSnapshots {
		for _, shot := range s.taken {
			shot.data = nil
		}
		s.full = 1
	}
	shot := &statusFile{data: data, at: time.Now(), lookups: 1}
	s.taken[s.last] = shot
	out.NodeId, out.AttrValid = s.last, forever
	fileAttr(&out.Attr, s.last, shot)
}

func (s *statusFS) Forget(nodeid, nlookup uint64) {
	if nodeid < statusDir {
		s.RawFileSystem.Forget(nodeid, nlookup)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if shot := s.taken[nodeid]; shot != nil {
		if shot.lookups -= min(nlookup, shot.lookups); shot.lookups == 0 {
			delete(s.taken, nodeid)
			if shot.data != nil {
				s.full--
			}
		}
	}
}

func (s *statusFS) dirAttr(out *fuse.Attr) {
	*out = fuse.Attr{Ino: statusDir, Mode: syscall.S_IFDIR | 0o555, Nlink: 2, Size: dirSize, Blksize: blockSize, Mtime: uint64(s.start.Unix())}
	out.Atime, out.Ctime = out.Mtime, out.Mtime
}

func fileAttr(out *fuse.Attr, id ID, shot *statusFile) {
	*out = fuse.Attr{Ino: id, Mode: syscall.S_IFREG | 0o444, Nlink: 1, Size: uint64(len(shot.data)), Blksize: blockSize, Mtime: uint64(shot.at.Unix())}
	out.Atime, out.Ctime = out.Mtime, out.Mtime
}

func (s *statusFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	switch {
	case in.NodeId < statusDir:
		return s.RawFileSystem.GetAttr(cancel, in, out)
	case in.NodeId == statusDir:
		s.dirAttr(&out.Attr)
		return fuse.OK
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	shot := s.taken[in.NodeId]
	if shot == nil {
		return fuse.Status(syscall.ESTALE)
	}
	fileAttr(&out.Attr, in.NodeId, shot)
	return fuse.OK
}

func (s *statusFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if in.NodeId < statusDir {
		return s.RawFileSystem.Read(cancel, in, buf)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	shot := s.taken[in.NodeId]
	if shot == nil {
		return nil, fuse.Status(syscall.ESTALE)
	}
	off := min(in.Offset, uint64(len(shot.data)))
	return fuse.ReadResultData(shot.data[off:min(off+uint64(in.Size), uint64(len(shot.data)))]), fuse.OK
}

func (s *statusFS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.NodeId < statusDir {
		return s.RawFileSystem.ReadDir(cancel, in, out)
	}
	s.list(in, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
	return fuse.OK
}

func (s *statusFS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.NodeId < statusDir {
		return s.RawFileSystem.ReadDirPlus(cancel, in, out)
	}
	s.list(in, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil }) // node 0: to be looked up
	return fuse.OK
}

// list adds the directory's entries from in.Offset on.
func (s *statusFS) list(in *fuse.ReadIn, add func(fuse.DirEntry) bool) {
	entries := []fuse.DirEntry{{Name: ".", Mode: syscall.S_IFDIR, Ino: statusDir}, {Name: "..", Mode: syscall.S_IFDIR, Ino: Root}}
	names := make([]string, 0, 8)
	for name := range s.files() {
		names = append(names, name)
	}
	slices.SortFunc(names, strings.Compare)
	for i, name := range names {
		entries = append(entries, fuse.DirEntry{Name: name, Mode: syscall.S_IFREG, Ino: statusFirst + ID(i)})
	}
	for i := in.Offset; i < uint64(len(entries)); i++ {
		if entries[i].Off = i + 1; !add(entries[i]) {
			return
		}
	}
}

func (s *statusFS) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if in.NodeId < statusDir {
		return s.RawFileSystem.GetXAttr(cancel, in, name, dest)
	}
	return 0, fuse.ENODATA
}

func (s *statusFS) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if in.NodeId < statusDir {
		return s.RawFileSystem.ListXAttr(cancel, in, dest)
	}
	return 0, fuse.OK
}
