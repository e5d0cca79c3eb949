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

// Of at most maxListings upper directories are sorted names kept, maxKept altogether, and of each at most maxListed at a
// time: a larger directory is read once more for every so many names.
const (
	maxListings = 32
	maxListed   = 1 << 17
	maxKept     = 2 * maxListed
)

// listings keeps the names of upper directories that are being read. The zero value is empty.
type listings struct {
	mu   sync.Mutex
	seed maphash.Seed
	once sync.Once
	byN  map[*node]*list.Element // of *listing
	used list.List               // most recently used in front
	kept int                     // names in all of them
	most int                     // names of one listing; 0 is maxListed. Immutable
}

// listing is names in an upper directory, in the order of their offsets: all of those after one offset, up to another.
type listing struct {
	n           *node
	names       []listed
	after, upTo uint64
	stale       bool // names have come since; those that went are found out when asked for
}

// endOffset is after all offsets.
const endOffset = 1<<63 - 1

type listed struct {
	offset uint64
	name   string
}

// get returns n's listing if it can say what comes after offset off. Whoever begins is shown what is there now.
func (l *listings) get(n *node, off uint64) *listing {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byN[n]
	if e == nil {
		return nil
	}
	li := e.Value.(*listing)
	if li.names == nil || li.stale && off < upperOffset || off < li.after || off >= li.upTo {
		return nil
	}
	l.used.MoveToFront(e)
	return li
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

func (l *listings) finish(li *listing, names []listed, after, upTo uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	li.names, li.after, li.upTo = names, after, upTo
	if e := l.byN[li.n]; e == nil || e.Value.(*listing) != li {
		return // others have begun anew meanwhile
	}
	l.kept += len(names)
	for l.kept > maxKept && l.used.Len() > 1 {
		l.remove(l.used.Back().Value.(*listing).n)
	}
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
		l.kept -= len(e.Value.(*listing).names)
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
	for off < endOffset {
		li := r.f.listings.get(r.n, off)
		if li == nil {
			var err error
			if li, err = r.f.list(r.n, off); li == nil || err != nil {
				return err
			}
		}
		if full, err := r.someNames(ctx, li.names, off); full || err != nil {
			return err
		}
		off = li.upTo
	}
	return nil
}

// someNames is upperNames of one listing.
func (r *reading) someNames(ctx context.Context, names []listed, off uint64) (full bool, err error) {
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
				return false, b.err
			}
			if b.id == 0 {
				batch = append(batch, candidate{names[i].name, names[i].offset, b})
			}
		}
		if full, err := r.emit(ctx, batch); full || err != nil {
			return full, err
		}
	}
	return false, nil
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

// list reads and sorts the first names of an upper directory after an offset; nil where there are none, for it is gone.
func (f *FS) list(n *node, after uint64) (*listing, error) {
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
	if after < upperOffset {
		after = 0
	}
	li := f.listings.begin(n)
	first := firstNames{max: cmp.Or(f.listings.most, maxListed), upTo: endOffset}
	err = eachName(h.fd, func(name string, typ uint8) bool {
		if off := upperOffset | maphash.String(f.listings.seed, name)>>2; off > after && off <= first.upTo && !hidden(place{h.fd, name}, typ) {
			first.add(listed{off, name})
		}
		return true
	})
	if err != nil {
		f.listings.drop(n)
		return nil, err
	}
	first.sort()
	f.listings.finish(li, first.names, after, first.upTo)
	return li, nil
}

// firstNames keeps the first of many names, in the order of their offsets.
type firstNames struct {
	max   int
	names []listed
	upTo  uint64 // beyond it something was left out
}

func (f *firstNames) add(l listed) {
	f.names = append(f.names, l)
	if len(f.names) >= 2*f.max {
		f.sort()
	}
}

// sort sorts the names, and leaves out those beyond the first max. Names of one offset, should there be any, stay together:
// an offset cannot tell between them.
func (f *firstNames) sort() {
	if f.names == nil {
		f.names = []listed{}
	}
	slices.SortFunc(f.names, func(a, b listed) int { return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.name, b.name)) })
	if len(f.names) <= f.max {
		return
	}
	f.upTo = f.names[f.max-1].offset
	end := f.max
	for end < len(f.names) && f.names[end].offset == f.upTo {
		end++
	}
	clear(f.names[end:])
	f.names = f.names[:end]
}
