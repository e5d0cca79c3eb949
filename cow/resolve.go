package cow

import (
	"context"
	"errors"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
)

// below is what the lower has under a name. It is asked for before any lock is taken: the lower may make one wait.
type below struct {
	id   uint64 // 0 = nothing
	attr fs.Attr
	err  error // why that is not known
}

// beneath asks the lower for a name of directory p.
func (f *FS) beneath(ctx context.Context, p *node, name string) (b below) {
	if p.lower == 0 || p.kind != unix.S_IFDIR {
		return below{}
	}
	b.id, b.attr, b.err = f.lower.Lookup(ctx, p.lower, name)
	if b.err != nil {
		b.id = 0
		if fs.Errno(b.err) == unix.ENOENT {
			b.err = nil
		}
	}
	return b
}

// child is what a name of the merged tree is.
type child struct {
	id    uint64 // FUSE's node id, but for aliases
	lower uint64 // what it is merged with or was copied up from

	// In the upper: what the host says, and the records.
	upper bool
	st    unix.Stat_t
	meta  meta

	attr fs.Attr // only in the lower
}

// mode is the st_mode that the guest sees.
func (c *child) mode() uint32 {
	switch {
	case !c.upper:
		return c.attr.Mode
	case c.meta.over != nil:
		return c.meta.over.mode
	}
	return c.st.Mode
}

// covered reports whether c is a whiteout device.
func (c *child) covered() bool { return c.upper && isWhiteout(&c.st) }

func (c *child) isDir() bool { return c.mode()&unix.S_IFMT == unix.S_IFDIR }

// resolve says what name is in directory p, given what the lower has there. With ENOENT, child.covered says that there is
// a whiteout device. tree is held, at least for reading.
func (f *FS) resolve(p *node, name string, b *below) (c child, err error) {
	if p.gone {
		return c, unix.ENOENT
	}
	if p.up.Load() {
		found, err := f.inUpper(p, name, b, &c)
		if found || err != nil {
			return c, err
		}
	}
	return f.onlyBelow(b)
}

// onlyBelow is resolve for a name that the upper neither has nor hides.
func (f *FS) onlyBelow(b *below) (c child, err error) {
	switch {
	case b.err != nil:
		return c, b.err
	case b.id == 0:
		return c, unix.ENOENT
	}
	c = child{id: b.id, lower: b.id, attr: b.attr}
	if !isIndexed(&b.attr) || !f.indexed.Load() {
		return c, nil
	}
	// Another name of this file may have been copied up.
	at := place{f.upper.indexHandle.fd, privateName(b.id)}
	err = f.statChild(at, &c)
	if err == unix.ENOENT {
		err = nil
	}
	return c, err
}

// isIndexed reports whether a file of the lower has an entry in index/ once it is copied up: it has several names, or as
// far as is known now may have.
func isIndexed(a *fs.Attr) bool {
	return !a.IsDir() && (a.Nlink > 1 || a.Provisional)
}

// inUpper looks for name in the upper directory p: it may be there, be hidden there, or not be found.
func (f *FS) inUpper(p *node, name string, b *below, c *child) (found bool, err error) {
	h, err := f.dirHandle(p)
	if err != nil {
		return false, err
	}
	defer f.handles.release(h)
	at := place{h.fd, name}
	err = f.statChild(at, c)
	switch {
	case err == unix.ENOENT:
		if p.lower != 0 && f.hasWhiteoutFile(h.fd, name) {
			return true, unix.ENOENT
		}
		return false, nil
	case err != nil:
		return false, err
	case c.covered():
		return true, unix.ENOENT
	}
	if c.isDir() && c.lower == 0 && !c.meta.opaque && p.lower != 0 {
		// Somebody else's upper merges directories by name.
		if b.err != nil {
			return false, b.err
		}
		if b.id != 0 && b.attr.IsDir() && !f.hasWhiteoutFile(h.fd, name) && !hasOpaqueFile(at) {
			c.lower, c.id = b.id, b.id
		}
	}
	return true, nil
}

func (f *FS) hasWhiteoutFile(dir int, name string) bool {
	if f.upper.devices && !f.upper.bothForm || len(name)+len(whPrefix) > 255 {
		return false
	}
	_, err := place{dir, whPrefix + name}.stat()
	return err == nil
}

func hasOpaqueFile(dir place) bool {
	fd, err := dir.openDir()
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, err = place{fd, opaqueFile}.stat()
	return err == nil
}

// statChild reads what is at a place of the upper into c.
func (f *FS) statChild(at place, c *child) (err error) {
	if c.st, err = at.stat(); err != nil {
		return err
	}
	c.upper = true
	if isWhiteout(&c.st) {
		return nil
	}
	if c.meta, err = readMeta(at, c.st.Mode); err != nil {
		return err
	}
	c.id, c.lower = c.meta.origin, c.meta.origin
	if c.id == 0 {
		c.id = firstUpper + c.st.Ino
	}
	if c.meta.opaque {
		c.lower = 0
	}
	return nil
}

// attr fills out what stat shows of n. tree is held, at least for reading.
func (f *FS) attr(ctx context.Context, n *node, out *fuse.Attr) (provisional bool, err error) {
	if !n.up.Load() {
		a, err := f.lower.Attr(ctx, n.lower)
		if err != nil {
			return false, err
		}
		lowerAttr(n, &a, out)
		return a.Provisional, nil
	}
	if n.last != nil {
		hostAttr(n, n.last, out)
		out.Nlink = 0
		return false, nil
	}
	at, done, err := f.at(n)
	if err != nil {
		return false, err
	}
	defer done()
	st, err := at.stat()
	if err != nil {
		return false, err
	}
	return f.upperAttr(ctx, n, &st, out)
}

// upperAttr is attr of a file in the upper, whose host attributes are known.
func (f *FS) upperAttr(ctx context.Context, n *node, st *unix.Stat_t, out *fuse.Attr) (provisional bool, err error) {
	hostAttr(n, st, out)
	switch {
	case n.kind == unix.S_IFDIR && n.lower != 0:
		out.Nlink, provisional, err = f.countDir(ctx, n, st)
		if err == nil && n == f.root && n.over == nil {
			var a fs.Attr
			a, err = f.lower.Attr(ctx, fs.Root)
			borrowed(&a, st, out)
			provisional = true
		}
		return provisional, err
	case n.links != nil:
		a, err := f.lower.Attr(ctx, n.lower)
		if err != nil {
			return false, err
		}
		out.Nlink = uint32(max(0, n.links.names(uint32(st.Nlink), a.Nlink)))
	}
	if n.gone {
		out.Nlink = 0
		if n.links == nil {
			out.Nlink = uint32(max(0, int(st.Nlink)-1)) // its name in orphans/ does not count
		}
	}
	if n.data != nil {
		// What is still the lower's takes no room here, but is no hole.
		out.Blocks = max(out.Blocks, (out.Size+511)/512)
	}
	return false, nil
}

func hostAttr(n *node, st *unix.Stat_t, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: ino(n.id), Size: uint64(st.Size), Blocks: uint64(st.Blocks), Blksize: 4096,
		Mode: st.Mode, Nlink: uint32(st.Nlink), Rdev: uint32(st.Rdev), Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Atime: uint64(st.Atim.Sec), Atimensec: uint32(st.Atim.Nsec),
		Mtime: uint64(st.Mtim.Sec), Mtimensec: uint32(st.Mtim.Nsec),
		Ctime: uint64(st.Ctim.Sec), Ctimensec: uint32(st.Ctim.Nsec),
	}
	if o := n.over; o != nil {
		out.Uid, out.Gid, out.Mode, out.Rdev = o.uid, o.gid, o.mode, o.rdev
		if n.kind != st.Mode&unix.S_IFMT && n.kind != unix.S_IFLNK {
			out.Size, out.Blocks = 0, 0
		}
	}
}

func lowerAttr(n *node, a *fs.Attr, out *fuse.Attr) {
	fillLower(n.id, a, out)
	if n.gone {
		out.Nlink = 0
	}
}

// fillLower is the stat of a file that is only in the lower.
func fillLower(id uint64, a *fs.Attr, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: ino(id), Size: uint64(a.Size), Blocks: uint64(a.Size+511) / 512, Blksize: 4096,
		Mode: a.Mode, Nlink: a.Nlink, Rdev: a.Rdev, Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Mtime: uint64(a.Mtime.Sec), Mtimensec: a.Mtime.Nsec,
	}
	out.Atime, out.Atimensec = out.Mtime, out.Mtimensec
	out.Ctime, out.Ctimensec = out.Mtime, out.Mtimensec
}

// countDir is the st_nlink of a merged directory: two, and one for each directory in it. It is counted once, then kept by
// the changes that are made. tree is held, at least for reading.
func (f *FS) countDir(ctx context.Context, n *node, st *unix.Stat_t) (links uint32, provisional bool, err error) {
	a, err := f.lower.Attr(ctx, n.lower)
	if err != nil {
		return 0, false, err
	}
	if a.Provisional || a.Nlink < 2 {
		return 1, true, nil // the way to say that it is not known
	}
	f.tableMu.Lock()
	counted, delta := n.dir.counted, n.dir.links
	f.tableMu.Unlock()
	if !counted {
		if delta, err = f.countChanges(ctx, n); err != nil {
			return 0, false, err
		}
		f.tableMu.Lock()
		n.dir.counted, n.dir.links = true, delta
		f.tableMu.Unlock()
	}
	return uint32(max(2, int(a.Nlink)+delta)), false, nil
}

// countChanges is how many more directories n has than its lower has.
func (f *FS) countChanges(ctx context.Context, n *node) (delta int, err error) {
	h, err := f.dirHandle(n)
	if err != nil {
		return 0, err
	}
	defer f.handles.release(h)
	var failed error
	err = eachName(h.fd, func(name string, typ uint8) bool {
		what := name
		if hidden, ok := strings.CutPrefix(name, whPrefix); ok {
			if what = hidden; hidden == "" || strings.HasPrefix(hidden, whPrefix) {
				return true // private
			}
			if _, err := (place{h.fd, what}).stat(); err == nil {
				return true // counted as itself
			}
		} else if typ == unix.DT_DIR {
			delta++
		}
		b := f.beneath(ctx, n, what)
		if b.id != 0 && b.attr.IsDir() {
			delta--
		}
		failed = b.err
		return b.err == nil
	})
	return delta, errors.Join(err, failed)
}

// dirsChanged keeps the count of directories in p. tree is locked.
func (f *FS) dirsChanged(p *node, by int) {
	f.tableMu.Lock()
	defer f.tableMu.Unlock()
	if p.dir != nil && p.dir.counted {
		p.dir.links += by
	}
}
