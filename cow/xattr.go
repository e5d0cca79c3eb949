package cow

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	xattrCaps       = "security.capability"
	xattrACL        = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"
)

// reserved reports whether a user xattr is ours to write, and a guest's of that name stored under another.
func reserved(name string) bool {
	return name == overrideXattr || strings.HasPrefix(name, recordPrefix) || strings.HasPrefix(name, "user.overlay.")
}

// hostXattr is what a guest's xattr is called on a host file of that mode.
func hostXattr(guest string, hostMode uint32) (string, error) {
	if strings.HasPrefix(guest, "user.") && !reserved(guest) && hostMode&unix.S_IFMT != unix.S_IFLNK {
		return guest, nil
	}
	host := prefixFor(hostMode) + guestPrefix + guest
	if len(host) > 255 {
		return "", unix.ERANGE
	}
	return host, nil
}

// guestXattr is what the guest calls a host file's xattr, if it is to see it at all.
func guestXattr(host string, hostMode uint32) (string, bool) {
	if rest, ok := strings.CutPrefix(host, prefixFor(hostMode)+guestPrefix); ok {
		return rest, true
	}
	return host, strings.HasPrefix(host, "user.") && !reserved(host)
}

// note keeps what has to be known about xattrs without asking, of one that a host file has.
func (m *meta) note(host string) {
	switch {
	case strings.HasSuffix(host, guestPrefix+xattrCaps):
		m.caps = true
	case strings.HasSuffix(host, guestPrefix+xattrACL):
		m.acl = true
	case strings.HasSuffix(host, guestPrefix+xattrDefaultACL):
		m.defacl = true
	}
}

// copyXattrs calls set for every xattr of a lower file, under the name it has on a host file of that mode.
func copyXattrs(ctx context.Context, lower Lower, id uint64, hostMode uint32, set func(name string, value []byte) error) error {
	names, err := lower.Listxattr(ctx, id)
	if err != nil {
		return err
	}
	for _, guest := range names {
		value, err := lower.Getxattr(ctx, id, guest)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return err
		}
		host, err := hostXattr(guest, hostMode)
		if err != nil {
			return err
		}
		if err := set(host, value); err != nil {
			return err
		}
	}
	return nil
}

// xattrAt is at, with the host's mode, which decides how xattrs are called there. tree is held.
func (f *FS) xattrAt(n *node) (p place, hostMode uint32, done func(), err error) {
	if p, done, err = f.at(n); err != nil {
		return p, 0, nil, err
	}
	hostMode = n.kind
	if n.kind != unix.S_IFREG && n.kind != unix.S_IFDIR && (n.kind != unix.S_IFLNK || n.over != nil) {
		hostMode = unix.S_IFREG // a file that stands for it
	}
	return p, hostMode, done, nil
}

// GetXAttr answers from the upper, or from the lower while the file is only there.
func (f *FS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	n, err := f.node(h.NodeId)
	if err != nil {
		return 0, fail(err)
	}
	f.tree.RLock()
	defer f.tree.RUnlock()
	if !n.up.Load() || n == f.root && f.rootless.Load() {
		v, err := f.lower.Getxattr(request(cancel), n.lower, attr)
		return deliver(v, dest, err)
	}
	switch {
	case attr == xattrCaps && !n.caps, attr == xattrACL && !n.acl, attr == xattrDefaultACL && !n.defacl:
		return 0, fuse.ENODATA // what is asked most, and nearly always for nothing
	}
	p, mode, done, err := f.xattrAt(n)
	if err != nil {
		return 0, fail(err)
	}
	defer done()
	host, err := hostXattr(attr, mode)
	if err != nil {
		return 0, fuse.ENODATA
	}
	size, err := p.getxattr(host, dest)
	if err == unix.ERANGE {
		size, _ = p.getxattr(host, nil)
	}
	return uint32(size), fail(err)
}

// deliver copies a value to where the kernel wants it; ERANGE comes with the size it would take.
func deliver(v, dest []byte, err error) (uint32, fuse.Status) {
	if err != nil {
		return 0, fail(err)
	}
	if len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

// ListXAttr lists what the guest may see.
func (f *FS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, err := f.node(h.NodeId)
	if err != nil {
		return 0, fail(err)
	}
	names, err := f.listXattrs(request(cancel), n)
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return deliver(list, dest, err)
}

func (f *FS) listXattrs(ctx context.Context, n *node) (names []string, err error) {
	f.tree.RLock()
	defer f.tree.RUnlock()
	if !n.up.Load() || n == f.root && f.rootless.Load() {
		return f.lower.Listxattr(ctx, n.lower)
	}
	p, mode, done, err := f.xattrAt(n)
	if err != nil {
		return nil, err
	}
	defer done()
	err = p.xattrs(func(host string) error {
		if guest, ok := guestXattr(host, mode); ok {
			names = append(names, guest)
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

// SetXAttr copies the file up and sets the attribute there. Setting an access ACL changes the mode with it.
func (f *FS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return fail(err)
	}
	if len(data) > 1<<16 {
		return fuse.Status(unix.E2BIG)
	}
	if attr == xattrACL || attr == xattrDefaultACL {
		return fail(f.setACL(request(cancel), n, attr, data, in))
	}
	return fail(f.changeXattr(request(cancel), n, attr, func(p place, host string) error {
		err := p.setxattr(host, data, int(in.Flags&(unix.XATTR_CREATE|unix.XATTR_REPLACE)))
		if err == nil && attr == xattrCaps {
			n.caps = true
		}
		return err
	}))
}

// RemoveXAttr copies the file up and removes the attribute there. Of an ACL that is not there nobody is told (setfacl -b
// removes both kinds of every file).
func (f *FS) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	n, err := f.node(h.NodeId)
	if err != nil {
		return fail(err)
	}
	ctx := request(cancel)
	if !n.up.Load() || n == f.root && f.rootless.Load() {
		if _, err := f.lower.Getxattr(ctx, n.lower, attr); err != nil {
			return fail(absentACL(attr, err))
		}
	}
	return fail(f.changeXattr(ctx, n, attr, func(p place, host string) error {
		if err := p.removexattr(host); err != nil {
			return absentACL(attr, err)
		}
		switch attr {
		case xattrCaps:
			n.caps = false
		case xattrACL:
			n.acl = false
		case xattrDefaultACL:
			n.defacl = false
		}
		return nil
	}))
}

// absentACL turns the failure to remove an attribute that is not there into success if it is an ACL.
func absentACL(attr string, err error) error {
	if (attr == xattrACL || attr == xattrDefaultACL) && errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}

// changeXattr calls change, with tree locked, on n's place in the upper.
func (f *FS) changeXattr(ctx context.Context, n *node, attr string, change func(p place, host string) error) error {
	if err := f.mayChange(ctx, n); err != nil {
		return err
	}
	f.tree.Lock()
	defer f.tree.Unlock()
	if err := f.copyUpLocked(ctx, n); err != nil {
		return err
	}
	p, mode, done, err := f.xattrAt(n)
	if err != nil {
		return err
	}
	defer done()
	host, err := hostXattr(attr, mode)
	if err != nil {
		return err
	}
	return change(p, host)
}
