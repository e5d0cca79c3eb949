package cow

import (
	"cmp"
	"container/list"
	"context"
	"hash/maphash"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
)

// Directory offsets mean the same however the directory changes and whoever else reads it, since there are no open
// directories to keep a position in: 1 and 2 follow . and .., then come the names that the lower has, at their ordinal
// there, whatever the upper made of them; and from upperOffset on those that only the upper has, at the hash of each.
const upperOffset = 1 << 62

// maxListings is how many upper directories' sorted names are kept.
const maxListings = 32

// listings keeps the names of upper directories that are being read. The zero value is empty.
type listings struct {
	mu   sync.Mutex
	seed maphash.Seed
	once sync.Once
	byN  map[*node]*list.Element // of *listing
	used list.List               // most recently used in front
}

// listing is the names in an upper directory, in the order of their offsets.
type listing struct {
	n     *node
	names []listed
	stale bool // names have come since; those that went are found out when asked for
}

type listed struct {
	offset uint64
	name   string
}

// get returns n's listing, and whether it is up to date.
func (l *listings) get(n *node) (names []listed, fresh bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byN[n]
	if e == nil {
		return nil, false
	}
	l.used.MoveToFront(e)
	li := e.Value.(*listing)
	return li.names, !li.stale
}

// begin announces a new listing of n: changes from now on make it stale.
func (l *listings) begin(n *node) *listing {
	l.once.Do(func() { l.seed = maphash.MakeSeed() })
	li := &listing{n: n}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byN == nil {
		l.byN = make(map[*node]*list.Element)
	}
	l.remove(n)
	l.byN[n] = l.used.PushFront(li)
	for l.used.Len() > maxListings {
		l.remove(l.used.Back().Value.(*listing).n)
	}
	return li
}

func (l *listings) finish(li *listing, names []listed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	li.names = names
}

func (l *listings) changed(n *node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byN[n]; e != nil {
		e.Value.(*listing).stale = true
	}
}

func (l *listings) drop(n *node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(n)
}

func (l *listings) remove(n *node) {
	if e := l.byN[n]; e != nil {
		l.used.Remove(e)
		delete(l.byN, n)
	}
}

// ReadDir lists a directory.
func (f *FS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fail(f.readDir(request(cancel), in, out, false))
}

// ReadDirPlus lists a directory and looks up what it lists.
func (f *FS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fail(f.readDir(request(cancel), in, out, true))
}

func (f *FS) readDir(ctx context.Context, in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) error {
	n, err := f.directory(in.NodeId)
	if err != nil {
		return err
	}
	r := reading{f: f, n: n, out: out, plus: plus, room: int(in.Size)}
	off := in.Offset
	for i, name := range [...]string{".", ".."} {
		if off > uint64(i) {
			continue
		}
		if !r.add(fuse.DirEntry{Name: name, Mode: unix.S_IFDIR, Ino: r.dotIno(i), Off: uint64(i + 1)}) {
			return nil
		}
		off = uint64(i + 1)
	}
	if off < upperOffset && n.lower != 0 {
		full, err := r.lowerNames(ctx, int(off-2))
		if full || err != nil {
			return err
		}
	}
	if !n.up.Load() {
		return nil
	}
	return r.upperNames(ctx, off)
}

// reading is one READDIR or READDIRPLUS.
type reading struct {
	f    *FS
	n    *node
	out  *fuse.DirEntryList
	plus bool
	room int // bytes that the answer may have
}

func (r *reading) add(e fuse.DirEntry) bool {
	if r.plus {
		return r.out.AddDirLookupEntry(e) != nil
	}
	return r.out.AddDirEntry(e)
}

func (r *reading) dotIno(i int) uint64 {
	r.f.tree.RLock()
	defer r.f.tree.RUnlock()
	if i == 1 && r.n.parent != nil {
		return ino(r.n.parent.id)
	}
	return ino(r.n.id)
}

// candidate is a name that may be in the directory.
type candidate struct {
	name   string
	offset uint64
	b      below
}

// size is what a name takes in the answer, at least.
func (r *reading) size(name string) int {
	if r.plus {
		return 152 + len(name)
	}
	return 24 + len(name)
}

// lowerNames lists from ordinal from on what the lower's names are now.
func (r *reading) lowerNames(ctx context.Context, from int) (full bool, err error) {
	for more := true; more; {
		more = false
		var batch []candidate
		room := r.room
		err := r.f.lower.ReadDir(ctx, r.n.lower, from, func(name string, id uint64, a fs.Attr) bool {
			if room -= r.size(name); room < 0 {
				more = true
				return false
			}
			from++
			batch = append(batch, candidate{name, uint64(from) + 2, below{id: id, attr: a}})
			return true
		})
		if err != nil {
			return false, err
		}
		if full, err := r.emit(ctx, batch); full || err != nil {
			return full, err
		}
		more = more && len(batch) > 0
	}
	return false, nil
}

// upperNames lists the names that only the upper has, after offset off.
func (r *reading) upperNames(ctx context.Context, off uint64) error {
	names, fresh := r.f.listings.get(r.n)
	if names == nil || !fresh && off < upperOffset {
		var err error
		if names, err = r.f.list(r.n); err != nil {
			return err
		}
	}
	i, found := slices.BinarySearchFunc(names, off, func(l listed, off uint64) int { return cmp.Compare(l.offset, off) })
	if found {
		i++
	}
	for i < len(names) {
		var batch []candidate
		for room := r.room; i < len(names); i++ {
			if room -= r.size(names[i].name); room < 0 && len(batch) > 0 {
				break
			}
			b := r.f.beneath(ctx, r.n, names[i].name)
			if b.err != nil {
				return b.err
			}
			if b.id == 0 {
				batch = append(batch, candidate{names[i].name, names[i].offset, b})
			}
		}
		if full, err := r.emit(ctx, batch); full || err != nil {
			return err
		}
	}
	return nil
}

// emit adds those names to the answer that are there.
func (r *reading) emit(ctx context.Context, batch []candidate) (full bool, err error) {
	r.f.tree.RLock()
	defer r.f.tree.RUnlock()
	if r.n.gone {
		return true, nil
	}
	for i := range batch {
		e := &batch[i]
		c, err := r.f.resolve(r.n, e.name, &e.b)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return false, err
		}
		de := fuse.DirEntry{Name: e.name, Mode: c.mode(), Ino: ino(c.id), Off: e.offset}
		if !r.plus {
			if !r.out.AddDirEntry(de) {
				return true, nil
			}
			continue
		}
		slot := r.out.AddDirLookupEntry(de)
		if slot == nil {
			return true, nil
		}
		if r.f.entry(ctx, &c, r.n, e.name, slot) != nil {
			*slot = fuse.EntryOut{} // the kernel will look it up, and learn why
		}
	}
	return false, nil
}

// list reads and sorts the names of an upper directory.
func (f *FS) list(n *node) ([]listed, error) {
	f.tree.RLock()
	defer f.tree.RUnlock()
	if n.gone {
		return nil, nil
	}
	h, err := f.dirHandle(n)
	if err != nil {
		return nil, err
	}
	defer f.handles.release(h)
	li := f.listings.begin(n)
	names := []listed{}
	err = eachName(h.fd, func(name string, typ uint8) bool {
		if !hidden(place{h.fd, name}, typ) {
			names = append(names, listed{upperOffset | maphash.String(f.listings.seed, name)>>2, name})
		}
		return true
	})
	if err != nil {
		f.listings.drop(n)
		return nil, err
	}
	slices.SortFunc(names, func(a, b listed) int { return cmp.Compare(a.offset, b.offset) })
	f.listings.finish(li, names)
	return names, nil
}
