package cow

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// SetAttr changes size, mode, owner and times.
func (f *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fail(err)
	}
	return fail(f.setAttr(request(cancel), n, in, out))
}

func (f *FS) setAttr(ctx context.Context, n *node, in *fuse.SetAttrIn, out *fuse.AttrOut) error {
	kill := in.Valid&fuse.FATTR_KILL_SUIDGID != 0
	if in.Valid&fuse.FATTR_SIZE != 0 {
		if n.kind == unix.S_IFDIR {
			return unix.EISDIR
		}
		if err := f.written(ctx, n, kill); err != nil {
			return err
		}
		if err := f.truncate(ctx, n, int64(in.Size)); err != nil {
			return err
		}
	}
	if err := f.mayChange(ctx, n); err != nil {
		return err
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	if err := f.change(ctx, n, &in.SetAttrInCommon); err != nil {
		return err
	}
	return f.answerAttr(ctx, n, out)
}

const changesLooks = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID

// change sets what is not the size. tree is locked.
func (f *FS) change(ctx context.Context, n *node, in *fuse.SetAttrInCommon) error {
	const times = fuse.FATTR_ATIME | fuse.FATTR_MTIME
	if in.Valid&(changesLooks|times) == 0 {
		return nil // the change time alone follows every change by itself
	}
	if n.gone && n.kind == unix.S_IFDIR {
		return nil // nobody can see it but through its descriptor
	}
	if err := f.copyUpLocked(ctx, n); err != nil {
		return err
	}
	p, done, err := f.at(n)
	if err != nil {
		return err
	}
	defer done()
	if in.Valid&changesLooks != 0 {
		if err := f.changeLooks(n, p, in); err != nil {
			return err
		}
	}
	if in.Valid&times != 0 {
		return p.utimes(&[2]unix.Timespec{
			timeOf(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
			timeOf(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
		})
	}
	return nil
}

func timeOf(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

func (f *FS) changeLooks(n *node, p place, in *fuse.SetAttrInCommon) error {
	l, err := f.looksLike(n, p)
	if err != nil {
		return err
	}
	if v, ok := in.GetUID(); ok {
		l.uid = v
	}
	if v, ok := in.GetGID(); ok {
		l.gid = v
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 && n.kind != unix.S_IFDIR {
		l.mode = withoutSetid(l.mode)
		if n.caps {
			if err := f.dropCaps(n, p); err != nil {
				return err
			}
		}
	}
	if v, ok := in.GetMode(); ok {
		l.mode = n.kind | v
		if n.acl {
			if err := f.chmodACL(n, p, v); err != nil {
				return err
			}
		}
	}
	return f.setLooks(n, p, l)
}

// withoutSetid is what a mode loses when the file changes hands or is written to. Without the group's right to execute,
// setgid once meant mandatory locking and stays (inode(7)).
func withoutSetid(mode uint32) uint32 {
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	return mode &^ unix.S_ISUID
}

// looksLike are the attributes that the guest sees of n, at p. tree is held.
func (f *FS) looksLike(n *node, p place) (looks, error) {
	if o := n.over; o != nil {
		return looks{o.mode, o.uid, o.gid, o.rdev}, nil
	}
	st, err := p.stat()
	return looks{mode: st.Mode, uid: st.Uid, gid: st.Gid}, err
}

// setLooks makes n, at p, look so. tree is locked. The record comes first when there is to be one, and goes last when not:
// while there is one it is what counts.
func (f *FS) setLooks(n *node, p place, l looks) error {
	host, over := f.upper.onHost(l)
	if over == nil && n.over != nil && n.kind != unix.S_IFREG && n.kind != unix.S_IFDIR || n == f.root {
		over = &override{uid: l.uid, gid: l.gid, mode: l.mode, rdev: l.rdev} // as it is stored
	}
	hostKind := host & unix.S_IFMT
	if n.kind == unix.S_IFLNK && n.over == nil {
		hostKind, over = unix.S_IFLNK, nil // a real one, whatever this mount would make
	}
	if over != nil {
		if err := p.setxattr(overrideXattr, []byte(over.format(hostKind)), 0); err != nil {
			return err
		}
		n.over = over
	}
	if n == f.root {
		return nil
	}
	if f.upper.owners {
		if err := p.chown(l.uid, l.gid); err != nil {
			return err
		}
	}
	if hostKind != unix.S_IFLNK {
		if err := p.chmod(host & 0o7777); err != nil {
			return err
		}
	}
	if over == nil && n.over != nil {
		if err := p.removexattr(overrideXattr); err != nil {
			return err
		}
		n.over = nil
	}
	return nil
}

// dropPrivileges is what a write takes from n; see written. tree is locked.
func (f *FS) dropPrivileges(n *node, p place, setid bool) error {
	if n.caps {
		if err := f.dropCaps(n, p); err != nil {
			return err
		}
	}
	l, err := f.looksLike(n, p)
	if err != nil || !setid || withoutSetid(l.mode) == l.mode {
		return err
	}
	l.mode = withoutSetid(l.mode)
	return f.setLooks(n, p, l)
}

func (f *FS) dropCaps(n *node, p place) error {
	host, err := hostXattr(xattrCaps, unix.S_IFREG)
	if err != nil {
		return err
	}
	n.caps = false
	if err := p.removexattr(host); err != unix.ENODATA {
		return err
	}
	return nil
}

// chmodACL keeps an access ACL in step with a new mode.
func (f *FS) chmodACL(n *node, p place, mode uint32) error {
	a, err := storedACL(p, unix.S_IFREG, xattrACL)
	if err != nil {
		return err
	}
	a.chmod(mode)
	host, err := hostXattr(xattrACL, unix.S_IFREG)
	if err != nil {
		return err
	}
	return p.setxattr(host, a.bytes(), 0)
}
