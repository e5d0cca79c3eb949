package fs

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/microsandbox/msb-fs/layer"
)

// sealer turns a growing tree whose layers have all ended into a flat one.
type sealer struct {
	g       *grow
	nodes   []flatNode
	dirents []flatDirent
	xattrs  []flatXattr
	strings []byte
	names   []*name // of directories, by node number
	files   map[ref]uint32
	words   map[string]uint32 // xattr names and values, most of which are the same
	ids     []uint32
	header  flatHeader
}

// seal builds the flat form of g.
func seal(g *grow) (*flat, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &sealer{g: g, files: make(map[ref]uint32), words: make(map[string]uint32)}
	total := uint32(0)
	s.header.Layers = uint32(g.top())
	for l := range g.layers {
		s.header.First[l] = total
		if uint64(total)+uint64(len(g.layers[l].entries)) > math.MaxUint32 {
			return nil, fmt.Errorf("seal tree: too many entries")
		}
		total += uint32(len(g.layers[l].entries))
	}
	for l := len(g.layers); l < len(s.header.First); l++ {
		s.header.First[l] = total
	}
	s.ids = make([]uint32, total)
	s.nodes = make([]flatNode, 1, total+2)
	root := g.lookRoot()
	s.addNode(root, g.root, 0)
	for i := uint32(rootNode); int(i) < len(s.nodes); i++ {
		if n := s.names[i]; n != nil {
			if err := s.addDir(i, n); err != nil {
				return nil, err
			}
		}
	}
	shown := s.header.Bytes
	s.addOrphans()
	s.header.Bytes = shown
	return s.encode()
}

// addNode adds the node of what is seen at n.
func (s *sealer) addNode(v seen, n *name, parent uint32) uint32 {
	a := s.g.seenAttr(v, n)
	i := uint32(len(s.nodes))
	f := flatNode{
		ID: uint32(v.id), Parent: parent, Mode: a.Mode, UID: a.UID, GID: a.GID, Rdev: a.Rdev,
		MtimeSec: a.Mtime.Sec, MtimeNsec: a.Mtime.Nsec, Size: a.Size,
	}
	if v.attrs.layer >= 0 {
		e := &s.g.layers[v.attrs.layer].entries[v.attrs.entry]
		if a.Mode&syscall.S_IFMT == syscall.S_IFLNK {
			f.First = s.str(e.Linkname)
		}
		s.addXattrs(&f, e.Xattrs)
	}
	if a.Mode&syscall.S_IFMT == syscall.S_IFREG {
		s.header.Bytes += uint64(a.Size)
	}
	if v.dir {
		s.names = append(slices.Grow(s.names, int(i)+1-len(s.names))[:i], n)
	} else {
		s.names = append(slices.Grow(s.names, int(i)+1-len(s.names))[:i], nil)
		s.files[v.attrs] = i
	}
	s.setID(v.id, i)
	for j := range n.marks { // whichever of them was known to somebody while the layers streamed
		if m := &n.marks[j]; v.dir && m.dir() {
			s.setID(m.id, i)
		}
	}
	s.nodes = append(s.nodes, f)
	return i
}

func (s *sealer) setID(id ID, node uint32) {
	if l, e := split(id); l >= 0 {
		s.ids[s.header.First[l]+e] = node
	}
}

// addDir adds the children of directory node i.
func (s *sealer) addDir(i uint32, n *name) error {
	list, err := s.g.list(n)
	if err != nil {
		return fmt.Errorf("seal tree: list %s: %w", n.path(), err)
	}
	first, floor, nlink := len(s.dirents), n.floor(s.g.top()), uint32(2)
	for _, c := range list {
		v, err := s.g.look(c.name, floor, s.g.top())
		if err != nil {
			return fmt.Errorf("seal tree: look up %s: %w", c.name.path(), err)
		}
		node, ok := uint32(0), false
		if !v.dir {
			node, ok = s.files[v.attrs]
		}
		if !ok {
			node = s.addNode(v, c.name, i)
		}
		if v.dir {
			nlink++
		} else {
			s.nodes[node].Nlink++
		}
		s.dirents = append(s.dirents, flatDirent{Node: node, Name: s.str(c.name.name), NameLen: uint32(len(c.name.name))})
	}
	d := &s.nodes[i]
	d.Nlink, d.First, d.Count = nlink, uint32(first), uint32(len(s.dirents)-first)
	return nil
}

// addOrphans adds the files that a layer showed and then replaced by one of the same name: while it streamed, somebody
// may have looked.
func (s *sealer) addOrphans() {
	for l := range s.g.layers {
		gl := &s.g.layers[l]
		for e := range gl.entries {
			k := &gl.entries[e]
			if k.Kind != layer.Plain || k.Mode&syscall.S_IFMT == syscall.S_IFDIR || gl.at[e] == nil {
				continue
			}
			if m := gl.at[e].mark(l); m != nil && m.what&isFile != 0 && m.entry == uint32(e) {
				continue
			}
			r := ref{l, uint32(e)}
			if s.files[r] == 0 {
				i := s.addNode(seen{id: makeID(l, r.entry), attrs: r}, gl.at[e], 0)
				s.nodes[i].Nlink = 1
			}
		}
	}
}

func (s *sealer) addXattrs(f *flatNode, xs []layer.Xattr) {
	if len(xs) == 0 {
		return
	}
	xs = slices.Clone(xs)
	slices.SortStableFunc(xs, func(a, b layer.Xattr) int { return strings.Compare(a.Name, b.Name) })
	f.Xattr = uint32(len(s.xattrs))
	for i, x := range xs {
		if i+1 < len(xs) && xs[i+1].Name == x.Name { // the last of a name is the one
			continue
		}
		s.xattrs = append(s.xattrs, flatXattr{
			Name: s.word(x.Name), NameLen: uint32(len(x.Name)),
			Value: s.word(string(x.Value)), ValueLen: uint32(len(x.Value)),
		})
	}
	f.Xattrs = uint32(len(s.xattrs)) - f.Xattr
}

// str appends a string; encode finds out when they have become too long to address.
func (s *sealer) str(v string) uint32 {
	off := len(s.strings)
	s.strings = append(s.strings, v...)
	return uint32(off)
}

// word is str for what is often the same.
func (s *sealer) word(v string) uint32 {
	off, ok := s.words[v]
	if !ok {
		off = s.str(v)
		s.words[v] = off
	}
	return off
}

func (s *sealer) encode() (*flat, error) {
	h := &s.header
	h.Magic = flatMagic
	h.Nodes, h.Dirents, h.Xattrs = uint64(len(s.nodes)), uint64(len(s.dirents)), uint64(len(s.xattrs))
	h.IDs, h.Strings = uint64(len(s.ids)), uint64(len(s.strings))
	if h.Strings > math.MaxUint32 {
		return nil, fmt.Errorf("seal tree: its names and xattrs are %d bytes, more than 4 GiB", h.Strings)
	}
	size := unsafe.Sizeof(*h) + uintptr(len(s.nodes))*unsafe.Sizeof(flatNode{}) +
		uintptr(len(s.dirents))*unsafe.Sizeof(flatDirent{}) + uintptr(len(s.xattrs))*unsafe.Sizeof(flatXattr{}) +
		uintptr(len(s.ids))*4 + uintptr(len(s.strings))
	h.Size = uint64(size)
	h.Sum = headerSum(*h)
	words := make([]uint64, (size+7)/8) // aligned as the mapping will be
	out := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), size)
	n := copy(out, unsafe.Slice((*byte)(unsafe.Pointer(h)), unsafe.Sizeof(*h)))
	n += copy(out[n:], raw(s.nodes))
	n += copy(out[n:], raw(s.dirents))
	n += copy(out[n:], raw(s.xattrs))
	n += copy(out[n:], raw(s.ids))
	copy(out[n:], s.strings)
	return parseFlat(out)
}

// raw returns the bytes of a table.
func raw[T any](s []T) []byte {
	var item T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), uintptr(len(s))*unsafe.Sizeof(item))
}

// save writes t to path, whole or not at all.
func (t *flat) save(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(t.data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("save tree %s: %w", path, err)
	}
	return nil
}
