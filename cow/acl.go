package cow

import (
	"context"
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// acl is a POSIX ACL as its xattr holds it: version 2, then tag, permissions and id of each entry, little-endian
// (include/uapi/linux/posix_acl_xattr.h).
type acl []aclEntry

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// Tags, include/uapi/linux/posix_acl.h.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

const setxattrKillSgid = 1 // FUSE_SETXATTR_ACL_KILL_SGID

func parseACL(b []byte) (acl, error) {
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != 2 {
		return nil, unix.EINVAL
	}
	var a acl
	for b = b[4:]; len(b) > 0; b = b[8:] {
		a = append(a, aclEntry{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])})
	}
	for _, tag := range []uint16{aclUserObj, aclGroupObj, aclOther} {
		if a.find(tag) == nil {
			return nil, unix.EINVAL
		}
	}
	return a, nil
}

func (a acl) bytes() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func (a acl) find(tag uint16) *aclEntry {
	for i := range a {
		if a[i].tag == tag {
			return &a[i]
		}
	}
	return nil
}

// class is the entry that a mode's group bits stand for.
func (a acl) class() *aclEntry {
	if m := a.find(aclMask); m != nil {
		return m
	}
	return a.find(aclGroupObj)
}

// mode is the permission bits that a says.
func (a acl) mode() uint32 {
	return uint32(a.find(aclUserObj).perm&7)<<6 | uint32(a.class().perm&7)<<3 | uint32(a.find(aclOther).perm&7)
}

// minimal reports whether a says no more than a mode does.
func (a acl) minimal() bool { return len(a) == 3 }

// chmod makes a say what mode does.
func (a acl) chmod(mode uint32) {
	a.find(aclUserObj).perm = uint16(mode >> 6 & 7)
	a.class().perm = uint16(mode >> 3 & 7)
	a.find(aclOther).perm = uint16(mode & 7)
}

// restrict takes from a what the mode that a file is created with does not have, and returns the mode that is left
// (acl(5), "object creation and default acls").
func (a acl) restrict(mode uint32) uint32 {
	a.chmod(a.mode() & mode)
	return mode&^0o777 | a.mode()
}

// setACL stores an ACL. An access ACL's mode becomes the file's, and where it says no more than that there is nothing to
// store.
func (f *FS) setACL(ctx context.Context, n *node, attr string, data []byte, in *fuse.SetXAttrIn) error {
	if len(data) == 0 {
		return f.removeACL(ctx, n, attr)
	}
	a, err := parseACL(data)
	if err != nil {
		return err
	}
	return f.changeXattr(ctx, n, attr, func(p place, host string) error {
		if attr == xattrDefaultACL {
			if n.kind != unix.S_IFDIR {
				return unix.EACCES
			}
			err := p.setxattr(host, data, 0)
			n.defacl = n.defacl || err == nil
			return err
		}
		if !a.minimal() {
			if err := p.setxattr(host, data, 0); err != nil {
				return err
			}
			n.acl = true
		}
		cur, err := f.looksLike(n, p)
		if err != nil {
			return err
		}
		cur.mode = cur.mode&^0o777 | a.mode()
		if in.SetXAttrFlags&setxattrKillSgid != 0 {
			cur.mode &^= unix.S_ISGID
		}
		if err := f.setLooks(n, p, cur); err != nil {
			return err
		}
		if a.minimal() && n.acl {
			n.acl = false
			return p.removexattr(host)
		}
		return nil
	})
}

func (f *FS) removeACL(ctx context.Context, n *node, attr string) error {
	return f.changeXattr(ctx, n, attr, func(p place, host string) error {
		if attr == xattrACL {
			n.acl = false
		} else {
			n.defacl = false
		}
		if err := p.removexattr(host); err != unix.ENODATA {
			return err
		}
		return nil
	})
}

// storedACL reads an ACL of an upper file.
func storedACL(p place, hostMode uint32, attr string) (acl, error) {
	host, err := hostXattr(attr, hostMode)
	if err != nil {
		return nil, err
	}
	b, err := p.xattr(host)
	if err != nil {
		return nil, err
	}
	return parseACL(b)
}
