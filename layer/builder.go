package layer

import (
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// builder fills a table with the entries of a layer, in their order, and sees to it that parents come first. The zero
// value with a table is ready; it is not safe for concurrent use.
type builder struct {
	t *table
	// dirs has the newest entry of every name that other names can be inside of: directories and symbolic links to them.
	dirs map[string]uint32
}

// add appends e, whose Name and Linkname are as the layer spells them, and the parents it lacks. It returns e's number,
// or ok false for an entry that is nobody's business (see whiteout).
func (b *builder) add(e Entry) (n int, ok bool, err error) {
	if e.Name, err = cleanName(e.Name); err != nil {
		return 0, false, err
	}
	name, kind, skip, err := whiteout(e.Name)
	if err != nil || skip {
		return 0, false, err
	}
	if kind != Plain {
		e = Entry{Name: name, Kind: kind}
	}
	if err := b.check(&e); err != nil {
		return 0, false, err
	}
	if e.Name == "" && e.Kind != Opaque && (e.Kind != Plain || e.Mode&unix.S_IFMT != unix.S_IFDIR) {
		return 0, false, refused("the root is not a directory")
	}
	below := e.Name
	if e.Kind == Opaque {
		below = join(e.Name, whiteoutOpaque) // the marker is inside of the directory, which has to be there as well
	}
	parent, err := b.parents(below)
	if err != nil {
		return 0, false, err
	}
	if e.Kind == Opaque && parent != none {
		parent = b.t.entries[parent].parent
	}
	n, err = b.append(&e, parent)
	return n, err == nil, err
}

// check holds an entry against the limits and what a file system can show.
func (b *builder) check(e *Entry) error {
	switch {
	case e.Kind == HardLink:
		target, err := cleanName(e.Linkname)
		if err != nil {
			return refused("hard link %q: %w", short(e.Name), err)
		}
		if target == "" {
			return refused("hard link %q to the root", short(e.Name))
		}
		e.Linkname = target
	case e.Mode&unix.S_IFMT == unix.S_IFLNK:
		if e.Linkname == "" || strings.IndexByte(e.Linkname, 0) >= 0 || len(e.Linkname) > MaxPath {
			return refused("symbolic link %q has an empty, too long or NUL-bearing target", short(e.Name))
		}
		e.Size = int64(len(e.Linkname))
		e.Mode = unix.S_IFLNK | 0o777 // whatever the tar says: no unpacker could keep it (symlink(7))
	default:
		e.Linkname = ""
	}
	if len(e.Xattrs) > MaxXattrs {
		return refused("%q has more than %d extended attributes", short(e.Name), MaxXattrs)
	}
	for _, x := range e.Xattrs {
		if x.Name == "" || len(x.Name) > MaxName || strings.IndexByte(x.Name, 0) >= 0 || len(x.Value) > MaxXattrValue {
			return refused("%q has an extended attribute that no file system takes", short(e.Name))
		}
	}
	sort.Slice(e.Xattrs, func(i, j int) bool { return e.Xattrs[i].Name < e.Xattrs[j].Name })
	if e.Size < 0 || e.Mtime.Nsec >= 1e9 {
		return refused("%q has an impossible size or time", short(e.Name))
	}
	return nil
}

// parents returns the entry number of name's parent, after it has made up those that the layer does not have.
func (b *builder) parents(name string) (uint32, error) {
	dir, _ := split(name)
	if dir == "" {
		return none, nil
	}
	if n, ok := b.dirs[dir]; ok {
		return n, nil
	}
	parent, err := b.parents(dir)
	if err != nil {
		return 0, err
	}
	n, err := b.append(&Entry{Name: dir, Kind: Implicit, Mode: unix.S_IFDIR | 0o755}, parent)
	return uint32(n), err
}

func (b *builder) append(e *Entry, parent uint32) (int, error) {
	t := b.t
	n := len(t.entries)
	if n >= MaxEntries {
		return 0, refused("more than %d entries", MaxEntries)
	}
	if len(t.text)+len(e.Name)+len(e.Linkname)+xattrsLen(e.Xattrs) > MaxText {
		return 0, refused("names and attributes take more than %d bytes", MaxText)
	}
	_, base := split(e.Name)
	r := entryRec{
		size: e.Size, sec: e.Mtime.Sec, nsec: e.Mtime.Nsec, parent: parent, mode: e.Mode, uid: e.UID, gid: e.GID,
		rdev: e.Rdev, kind: e.Kind, chunk: uint32(len(t.chunks)), name: uint32(len(t.text)), nameLen: uint16(len(base)),
	}
	t.text = append(t.text, base...)
	r.link, r.linkLen = uint32(len(t.text)), uint16(len(e.Linkname))
	t.text = append(t.text, e.Linkname...)
	r.xattr = uint32(len(t.text))
	t.text = appendXattrs(t.text, e.Xattrs)
	r.xattrLen = uint32(len(t.text)) - r.xattr
	t.entries = append(t.entries, r)
	b.note(e, uint32(n))
	return n, nil
}

// note keeps dirs up to date with entry n.
func (b *builder) note(e *Entry, n uint32) {
	if b.dirs == nil {
		b.dirs = make(map[string]uint32)
	}
	switch kind := e.Mode & unix.S_IFMT; {
	case e.Kind == Opaque:
	case e.Kind == Implicit, e.Kind == Plain && (kind == unix.S_IFDIR || kind == unix.S_IFLNK):
		b.dirs[e.Name] = n
	case e.Kind == Whiteout:
		// It hides lower layers only; what this layer has under the name stays.
	default:
		delete(b.dirs, e.Name)
	}
}

func xattrsLen(xs []Xattr) int {
	n := 0
	for _, x := range xs {
		n += 6 + len(x.Name) + len(x.Value)
	}
	return n
}
