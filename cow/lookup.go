package cow

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup answers for good: the kernel sees every change that could make the answer another.
func (f *FS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	p, err := f.directory(h.NodeId)
	if err != nil {
		return fail(err)
	}
	if validName(name) == unix.EPERM {
		return fuse.ENOENT // a whiteout's name
	}
	if err := validName(name); err != nil {
		return fail(err)
	}
	err = f.lookup(request(cancel), p, name, out)
	if err == unix.ENOENT {
		*out = fuse.EntryOut{}
		out.EntryValid = forever
		return fuse.OK // node 0: the absence may be kept
	}
	return fail(err)
}

// directory is the node of an id that must be a directory's.
func (f *FS) directory(id uint64) (*node, error) {
	n, err := f.node(id)
	if err == nil && n.kind != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	return n, err
}

func (f *FS) lookup(ctx context.Context, p *node, name string, out *fuse.EntryOut) error {
	for {
		// The upper first: what is there, or hidden there, needs no answer of the lower.
		f.tree.RLock()
		var c child
		seen := p.changes()
		found := false
		var err error
		if p.gone {
			err = unix.ENOENT
		} else if p.up.Load() {
			found, err = f.inUpper(p, name, &below{err: errAskLower}, &c)
		}
		if found && err == nil {
			err = f.entry(ctx, &c, p, name, out)
		}
		f.tree.RUnlock()
		if err != errAskLower && (found || err != nil) {
			return err
		}
		b := f.beneath(ctx, p, name)
		f.tree.RLock()
		if p.changes() != seen {
			f.tree.RUnlock()
			continue // a racing change, which the kernel does not make
		}
		if p.gone || err == errAskLower {
			c, err = f.resolve(p, name, &b)
		} else {
			c, err = f.onlyBelow(&b)
		}
		if err == nil {
			err = f.entry(ctx, &c, p, name, out)
		}
		f.tree.RUnlock()
		return err
	}
}

// errAskLower is what inUpper meets where the upper alone cannot tell.
const errAskLower = unix.EHWPOISON

// changes counts the changes of the names in a directory. tree is held.
func (n *node) changes() uint64 {
	if n.dir == nil {
		return 0
	}
	return n.dir.changes
}

// entry answers with child c of p, which the kernel now knows. tree is held.
func (f *FS) entry(ctx context.Context, c *child, p *node, name string, out *fuse.EntryOut) error {
	n, err := f.attach(c, p, name)
	if err != nil {
		return err
	}
	*out = fuse.EntryOut{NodeId: n.id, Generation: 1, EntryValid: forever, AttrValid: forever}
	provisional := false
	switch {
	case n.up.Load() && c.upper:
		provisional, err = f.upperAttr(ctx, n, &c.st, &out.Attr)
	case n.up.Load(): // by another name
		provisional, err = f.attr(ctx, n, &out.Attr)
	default:
		fillLower(n.id, &c.attr, &out.Attr)
		provisional = c.attr.Provisional
	}
	if provisional {
		out.AttrValid = 0
	}
	if err != nil {
		f.tableMu.Lock()
		n.lookups-- // the kernel was not told; what is left over is cleaned up with its parent's
		f.tableMu.Unlock()
	}
	return err
}

// GetAttr answers for good; see Lookup.
func (f *FS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fail(err)
	}
	ctx := request(cancel)
	if n == f.root {
		if err := f.adoptRoot(ctx, false); err != nil {
			return fail(err)
		}
	}
	f.tree.RLock()
	defer f.tree.RUnlock()
	return fail(f.answerAttr(ctx, n, out))
}

func (f *FS) answerAttr(ctx context.Context, n *node, out *fuse.AttrOut) error {
	*out = fuse.AttrOut{AttrValid: forever}
	provisional, err := f.attr(ctx, n, &out.Attr)
	if provisional {
		out.AttrValid = 0
	}
	return err
}

// Readlink returns a symbolic link's target.
func (f *FS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := f.node(h.NodeId)
	if err != nil {
		return nil, fail(err)
	}
	if n.kind != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	target, err := f.readlink(request(cancel), n)
	return target, fail(err)
}

func (f *FS) readlink(ctx context.Context, n *node) ([]byte, error) {
	f.tree.RLock()
	defer f.tree.RUnlock()
	if !n.up.Load() {
		target, err := f.lower.Readlink(ctx, n.lower)
		return []byte(target), err
	}
	p, done, err := f.at(n)
	if err != nil {
		return nil, err
	}
	defer done()
	if n.over != nil { // a file stands for it
		return readSmall(p)
	}
	buf := make([]byte, 4096)
	got, err := unix.Readlinkat(p.dir, p.name, buf)
	return buf[:max(got, 0)], err
}
