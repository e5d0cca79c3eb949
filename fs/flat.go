package fs

import (
	"fmt"
	"hash/crc32"
	"os"
	"runtime"
	"sort"
	"syscall"
	"unsafe"
)

// A flat tree is one run of bytes, written once and mapped by every mount. All numbers are of the host's byte order: the
// file is a cache, rebuilt where it does not fit.
//
//	header   flatHeader
//	nodes    []flatNode    by node number, breadth first; 0 is no node, 1 the root
//	dirents  []flatDirent  each directory's run sorted by name
//	xattrs   []flatXattr   each node's run sorted by name
//	ids      []uint32      node numbers by layer and entry, 0 where the entry is not shown
//	strings  []byte        names, symlink targets, xattr values
//
// Every number read from it is checked before use, so that a damaged file gives wrong answers at worst.
type flat struct {
	data    []byte
	header  *flatHeader
	nodes   []flatNode
	dirents []flatDirent
	xattrs  []flatXattr
	ids     []uint32
	strings []byte
}

// flatMagic is changed with the format.
const flatMagic = 0x31306565_7274736d // "mstree01"

type flatHeader struct {
	Magic   uint64
	Size    uint64 // of the whole file
	Layers  uint32
	Sum     uint32 // crc32 of the header with Sum 0
	Nodes   uint64 // how many of each
	Dirents uint64
	Xattrs  uint64
	IDs     uint64
	Strings uint64
	Bytes   uint64                // of all regular files, each once
	First   [MaxLayers + 3]uint32 // where each layer's ids start, and those of directories nobody wrote down
}

type flatNode struct {
	ID        uint32
	Parent    uint32 // node of the directory with its first name
	Mode      uint32
	Nlink     uint32
	UID, GID  uint32
	Rdev      uint32
	MtimeNsec uint32
	MtimeSec  int64
	Size      int64
	First     uint32 // of a directory its first dirent, of a symlink where its target starts
	Count     uint32 // of a directory its dirents
	Xattr     uint32 // its first xattr
	Xattrs    uint32
}

type flatDirent struct {
	Node    uint32
	Name    uint32
	NameLen uint32
}

type flatXattr struct {
	Name, NameLen   uint32
	Value, ValueLen uint32
}

const rootNode = 1

// openFlat maps the file of a tree of so many layers.
func openFlat(path string, layers int) (*flat, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < int64(unsafe.Sizeof(flatHeader{})) {
		return nil, fmt.Errorf("open tree %s: %d bytes are too few", path, st.Size())
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map tree %s: %w", path, err)
	}
	t, err := parseFlat(data)
	if err == nil && int(t.header.Layers) != layers {
		err = fmt.Errorf("it has %d layers, not %d", t.header.Layers, layers)
	}
	if err != nil {
		_ = syscall.Munmap(data)
		return nil, fmt.Errorf("open tree %s: %w", path, err)
	}
	// Unmapped when nobody can be reading it any more; whoever does keeps t alive.
	runtime.AddCleanup(t, func(b []byte) { _ = syscall.Munmap(b) }, data)
	return t, nil
}

// parseFlat lays the tables over data, which it keeps.
func parseFlat(data []byte) (*flat, error) {
	h := (*flatHeader)(unsafe.Pointer(unsafe.SliceData(data)))
	if h.Magic != flatMagic || h.Size != uint64(len(data)) || h.Sum != headerSum(*h) {
		return nil, fmt.Errorf("damaged, or of another version")
	}
	t := &flat{data: data, header: h}
	rest := data[unsafe.Sizeof(*h):]
	ok := true
	ok = ok && cutTable(&rest, h.Nodes, &t.nodes)
	ok = ok && cutTable(&rest, h.Dirents, &t.dirents)
	ok = ok && cutTable(&rest, h.Xattrs, &t.xattrs)
	ok = ok && cutTable(&rest, h.IDs, &t.ids)
	ok = ok && cutTable(&rest, h.Strings, &t.strings)
	if !ok || len(t.nodes) <= rootNode || h.Layers > MaxLayers {
		return nil, fmt.Errorf("damaged: its tables do not fit")
	}
	return t, nil
}

func headerSum(h flatHeader) uint32 {
	h.Sum = 0
	return crc32.ChecksumIEEE(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h)))
}

// cutTable takes a table of n items off the front of rest.
func cutTable[T any](rest *[]byte, n uint64, out *[]T) bool {
	var item T
	if n > uint64(len(*rest))/uint64(unsafe.Sizeof(item)) {
		return false
	}
	*out = unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(*rest))), n)
	*rest = (*rest)[n*uint64(unsafe.Sizeof(item)):]
	return true
}

// nodeOf returns the number of id's node, 0 when the tree does not show it.
func (t *flat) nodeOf(id ID) uint32 {
	if id == Root {
		return rootNode
	}
	l, e := split(id)
	if l < 0 || l > int(t.header.Layers) {
		return 0
	}
	i := uint64(t.header.First[l]) + uint64(e)
	if i >= uint64(t.header.First[l+1]) || i >= uint64(len(t.ids)) {
		return 0
	}
	return t.ids[i]
}

// node returns a node by number, nil for none.
func (t *flat) node(i uint32) *flatNode {
	if i == 0 || uint64(i) >= uint64(len(t.nodes)) {
		return nil
	}
	return &t.nodes[i]
}

// get returns id's node, nil for none.
func (t *flat) get(id ID) *flatNode { return t.node(t.nodeOf(id)) }

func (n *flatNode) isDir() bool { return n.Mode&syscall.S_IFMT == syscall.S_IFDIR }

func (n *flatNode) attr() Attr {
	a := Attr{Mode: n.Mode, Nlink: n.Nlink, UID: n.UID, GID: n.GID, Rdev: n.Rdev, Size: n.Size}
	a.Mtime.Sec, a.Mtime.Nsec = n.MtimeSec, n.MtimeNsec
	return a
}

// children returns a directory's names.
func (t *flat) children(n *flatNode) []flatDirent {
	return run(t.dirents, n.First, n.Count)
}

// run returns the count items from first on, none where they do not exist.
func run[T any](s []T, first, count uint32) []T {
	if uint64(first)+uint64(count) > uint64(len(s)) {
		return nil
	}
	return s[first : first+count]
}

// str returns a string of the table. It is a part of the mapping: valid as long as t is reachable.
func (t *flat) str(off, n uint32) string {
	b := run(t.strings, off, n)
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// child finds a name in a directory.
func (t *flat) child(dir *flatNode, name string) *flatNode {
	es := t.children(dir)
	lo, hi := 0, len(es)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if t.str(es[mid].Name, es[mid].NameLen) < name {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(es) || t.str(es[lo].Name, es[lo].NameLen) != name {
		return nil
	}
	return t.node(es[lo].Node)
}

// target returns what a symlink points to.
func (t *flat) target(n *flatNode) string {
	if n.Size < 0 || n.Size > int64(len(t.strings)) {
		return ""
	}
	return t.str(n.First, uint32(n.Size))
}

// xattr finds an extended attribute's value.
func (t *flat) xattr(n *flatNode, name string) ([]byte, bool) {
	xs := run(t.xattrs, n.Xattr, n.Xattrs)
	i := sort.Search(len(xs), func(i int) bool { return t.str(xs[i].Name, xs[i].NameLen) >= name })
	if i == len(xs) || t.str(xs[i].Name, xs[i].NameLen) != name {
		return nil, false
	}
	return run(t.strings, xs[i].Value, xs[i].ValueLen), true
}

// path returns one of a node's names, for people to read.
func (t *flat) path(i uint32) string {
	p := ""
	for depth := 0; i > rootNode && depth < maxPath; depth++ {
		n := t.node(i)
		if n == nil {
			break
		}
		dir := t.node(n.Parent)
		if dir == nil {
			break
		}
		for _, e := range t.children(dir) {
			if e.Node == i {
				p = "/" + t.str(e.Name, e.NameLen) + p
				break
			}
		}
		i = n.Parent
	}
	if p == "" {
		return "/"
	}
	return p
}
