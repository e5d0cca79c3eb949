package cow

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Link gives a file another name. A file of the lower is copied up for it, its content is not.
func (f *FS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return fail(f.link(request(cancel), in, name, out))
}

func (f *FS) link(ctx context.Context, in *fuse.LinkIn, name string, out *fuse.EntryOut) error {
	p, err := f.directory(in.NodeId)
	if err != nil {
		return err
	}
	n, err := f.node(in.Oldnodeid)
	if err != nil {
		return err
	}
	if n.kind == unix.S_IFDIR {
		return unix.EPERM
	}
	if err := validName(name); err != nil {
		return err
	}
	b := f.beneath(ctx, p, name)
	if err := errors.Join(f.settled(ctx, p), f.settled(ctx, n)); err != nil {
		return err
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	switch _, err := f.resolve(p, name, &b); {
	case err == nil:
		return unix.EEXIST
	case err != unix.ENOENT:
		return err
	}
	if err := f.copyUpLocked(ctx, p); err != nil {
		return err
	}
	if err := f.copyUpLocked(ctx, n); err != nil {
		return err
	}
	if err := f.linkAt(ctx, n, p, name); err != nil {
		return err
	}
	f.namesChanged(p)
	var c child
	at, done, err := f.in(p, name)
	if err != nil {
		return err
	}
	defer done()
	if err := f.statChild(at, &c); err != nil {
		return err
	}
	return f.entry(ctx, &c, p, name, out)
}

// linkAt gives n, which is in the upper, the name in p that nothing but a whiteout has. tree is locked.
func (f *FS) linkAt(ctx context.Context, n *node, p *node, name string) error {
	from, done, err := f.at(n)
	if err != nil {
		return err
	}
	defer done()
	to, done2, err := f.in(p, name)
	if err != nil {
		return err
	}
	defer done2()
	if n.gone && n.links == nil {
		// An O_TMPFILE gets its first name. Its place in orphans/ becomes that.
		if err := from.rename(to, 0); err != nil {
			return err
		}
		f.renamed(n, n.parent, n.name, p, name)
		n.gone = false
		return nil
	}
	if n.gone {
		return unix.ENOENT
	}
	if err := f.linksFollowHost(ctx, n, from); err != nil {
		return err
	}
	err = from.link(to)
	if err != unix.EEXIST {
		return err
	}
	t := f.upper.temp()
	if err := from.link(t); err != nil {
		return err
	}
	if err := t.rename(to, 0); err != nil {
		t.unlink()
		return err
	}
	return nil
}

// linksFollowHost records n's link count so that it changes with the host's, as it must when a name in the upper comes or
// goes that the lower has no part in. tree is locked.
func (f *FS) linksFollowHost(ctx context.Context, n *node, at place) error {
	if n.links == nil || n.links.upper {
		return nil
	}
	return f.recount(ctx, n, at, true)
}

// linksStay records n's link count so that it stays when the host's changes, as it must when a name of the lower comes to
// be in the upper. tree is locked.
func (f *FS) linksStay(ctx context.Context, n *node, at place) error {
	if n.links == nil || !n.links.upper {
		return nil
	}
	return f.recount(ctx, n, at, false)
}

func (f *FS) recount(ctx context.Context, n *node, at place, follow bool) error {
	st, err := at.stat()
	if err != nil {
		return err
	}
	a, err := f.lower.Attr(ctx, n.lower)
	if err != nil {
		return err
	}
	names := n.links.names(uint32(st.Nlink), a.Nlink)
	l := linkCount{upper: follow, delta: names - int(a.Nlink)}
	if follow {
		l.delta = names - int(st.Nlink)
	}
	if err := at.setxattr(prefixFor(st.Mode)+"nlink", []byte(l.format()), 0); err != nil {
		return err
	}
	n.links = &l
	return nil
}

// nameUp makes a name of the lower a name in the upper, for n, which is in the upper itself. tree is locked.
func (f *FS) nameUp(ctx context.Context, n *node, p *node, name string) error {
	if err := f.copyUpLocked(ctx, p); err != nil {
		return err
	}
	to, done, err := f.in(p, name)
	if err != nil {
		return err
	}
	defer done()
	if _, err := to.stat(); err == nil {
		return nil // it is one already
	}
	from, done2, err := f.at(n)
	if err != nil {
		return err
	}
	defer done2()
	if err := f.linksStay(ctx, n, from); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(to.dir, &st); err != nil {
		return err
	}
	if err := from.link(to); err != nil {
		return err
	}
	f.listings.changed(p)
	return place{to.dir, "."}.utimes(&[2]unix.Timespec{st.Atim, st.Mtim})
}
