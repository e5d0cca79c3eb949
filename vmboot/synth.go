package vmboot

import (
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// HiddenDir is the directory in the guest's root under which synthetic files are found. It can be looked up and
// is never listed; the image cannot have, and the guest cannot make, an entry of that name.
const HiddenDir = ".msb"

// File is a synthetic file. Content is read concurrently and must give Size bytes.
type File struct {
	Mode    uint32 // permission bits; 0 means 0444
	Size    int64
	Content io.ReaderAt
}

// synthBit marks the node ids of synthetic files. A lower's ids are below 1<<32 and cow's begin there.
const synthBit = 1 << 63

const synthValid = math.MaxUint32 // seconds the kernel may keep what it was told: for ever

// synthFS shows synthetic files beside an inner filesystem. Every request for a node of the inner one goes through
// after a test of one bit, and nothing about such a request is changed.
type synthFS struct {
	fuse.RawFileSystem
	nodes []synthNode // index: node id without synthBit; 0 is HiddenDir. Immutable.
}

type synthNode struct {
	name     string
	parent   int
	children []int // nil for a file
	dir      bool
	file     File
}

var _ fuse.RawFileSystem = (*synthFS)(nil)

// WithFiles returns raw with files visible under /.msb. The keys of files are slash-separated paths below it.
// It works over a filesystem that answers OPEN by ENOSYS: synthetic files are read by node id.
func WithFiles(raw fuse.RawFileSystem, files map[string]File) (fuse.RawFileSystem, error) {
	s := &synthFS{RawFileSystem: raw, nodes: []synthNode{{name: HiddenDir, dir: true}}}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if name == "" || path.Clean("/"+name) != "/"+name {
			return nil, fmt.Errorf("synthetic file %q: not a clean relative path", name)
		}
		if err := s.add(name, files[name]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *synthFS) add(name string, file File) error {
	at := 0
	parts := strings.Split(name, "/")
	for i, part := range parts {
		last := i == len(parts)-1
		next, ok := s.child(at, part)
		switch {
		case ok && (last || !s.nodes[next].dir):
			return fmt.Errorf("synthetic file %q: is both a file and a directory", name)
		case !ok:
			next = len(s.nodes)
			node := synthNode{name: part, parent: at, dir: !last}
			if last {
				node.file = file
			}
			s.nodes = append(s.nodes, node)
			s.nodes[at].children = append(s.nodes[at].children, next)
		}
		at = next
	}
	return nil
}

func (s *synthFS) child(dir int, name string) (int, bool) {
	for _, c := range s.nodes[dir].children {
		if s.nodes[c].name == name {
			return c, true
		}
	}
	return 0, false
}

// node returns the node with the given id, which a hostile guest may have made up.
func (s *synthFS) node(id uint64) (*synthNode, bool) {
	if n := id &^ synthBit; n < uint64(len(s.nodes)) {
		return &s.nodes[n], true
	}
	return nil, false
}

func isSynth(id uint64) bool { return id&synthBit != 0 }

// hides says whether name in parent is HiddenDir itself.
func hides(parent uint64, name string) bool { return parent == fuse.FUSE_ROOT_ID && name == HiddenDir }

func (s *synthFS) attr(id uint64, n *synthNode, a *fuse.Attr) {
	*a = fuse.Attr{Ino: id, Mode: syscall.S_IFDIR | 0o555, Nlink: 2, Blksize: 4096}
	if n.dir {
		return
	}
	mode := n.file.Mode & 0o7777
	if mode == 0 {
		mode = 0o444
	}
	a.Mode, a.Nlink = syscall.S_IFREG|mode, 1
	a.Size, a.Blocks = uint64(n.file.Size), uint64(n.file.Size+511)/512
}

func (s *synthFS) entry(id uint64, n *synthNode, out *fuse.EntryOut) {
	*out = fuse.EntryOut{NodeId: id, Generation: 1, EntryValid: synthValid, AttrValid: synthValid}
	s.attr(id, n, &out.Attr)
}

func (s *synthFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if hides(h.NodeId, name) {
		s.entry(synthBit, &s.nodes[0], out)
		return fuse.OK
	}
	if !isSynth(h.NodeId) {
		return s.RawFileSystem.Lookup(cancel, h, name, out)
	}
	n, ok := s.node(h.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	if !n.dir {
		return fuse.ENOTDIR
	}
	c, ok := s.child(int(h.NodeId&^synthBit), name)
	if !ok {
		return fuse.ENOENT
	}
	s.entry(synthBit|uint64(c), &s.nodes[c], out)
	return fuse.OK
}

func (s *synthFS) Forget(id, lookups uint64) {
	if !isSynth(id) {
		s.RawFileSystem.Forget(id, lookups)
	}
}

func (s *synthFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !isSynth(in.NodeId) {
		return s.RawFileSystem.GetAttr(cancel, in, out)
	}
	n, ok := s.node(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	out.AttrValid = synthValid
	s.attr(in.NodeId, n, &out.Attr)
	return fuse.OK
}

func (s *synthFS) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	if !isSynth(in.NodeId) {
		return s.RawFileSystem.Statx(cancel, in, out)
	}
	n, ok := s.node(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	var a fuse.Attr
	s.attr(in.NodeId, n, &a)
	out.AttrValid = synthValid
	out.Mask = 0x7ff // STATX_BASIC_STATS
	out.Blksize, out.Nlink, out.Mode, out.Ino, out.Size, out.Blocks = a.Blksize, a.Nlink, uint16(a.Mode), a.Ino, a.Size, a.Blocks
	return fuse.OK
}

func (s *synthFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if !isSynth(in.NodeId) {
		return s.RawFileSystem.Read(cancel, in, buf)
	}
	n, ok := s.node(in.NodeId)
	if !ok {
		return nil, fuse.Status(syscall.ESTALE)
	}
	if n.dir {
		return nil, fuse.Status(syscall.EISDIR)
	}
	if in.Offset >= uint64(n.file.Size) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	want := int(min(uint64(len(buf)), uint64(in.Size), uint64(n.file.Size)-in.Offset))
	got, err := n.file.Content.ReadAt(buf[:want], int64(in.Offset))
	if got < want {
		if err == nil || err == io.EOF {
			err = syscall.EIO
		}
		return nil, fuse.ToStatus(err)
	}
	return fuse.ReadResultData(buf[:got]), fuse.OK
}

func (s *synthFS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if isSynth(h.NodeId) {
		return nil, fuse.EINVAL
	}
	return s.RawFileSystem.Readlink(cancel, h)
}

func (s *synthFS) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	if isSynth(in.NodeId) {
		if in.Mask&2 != 0 {
			return fuse.EROFS
		}
		return fuse.OK
	}
	return s.RawFileSystem.Access(cancel, in)
}

func (s *synthFS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if isSynth(h.NodeId) {
		return 0, fuse.ENODATA
	}
	return s.RawFileSystem.GetXAttr(cancel, h, attr, dest)
}

func (s *synthFS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if isSynth(h.NodeId) {
		return 0, fuse.OK
	}
	return s.RawFileSystem.ListXAttr(cancel, h, dest)
}

func (s *synthFS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !isSynth(in.NodeId) {
		return s.RawFileSystem.Open(cancel, in, out)
	}
	if in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return fuse.EROFS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (s *synthFS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !isSynth(in.NodeId) {
		return s.RawFileSystem.OpenDir(cancel, in, out)
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

func (s *synthFS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.OK // never listed
	}
	return s.RawFileSystem.ReadDir(cancel, in, out)
}

func (s *synthFS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.OK
	}
	return s.RawFileSystem.ReadDirPlus(cancel, in, out)
}
