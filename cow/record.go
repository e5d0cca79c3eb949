package cow

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The names that this package gives a meaning to; see the package comment.
const (
	whPrefix   = ".wh."
	opaqueFile = ".wh..wh..opq"
	privateDir = ".wh..wh.msbfs"

	recordPrefix = "user.msbfs."
	linkPrefix   = "trusted.msbfs." // on symbolic links, which cannot have user xattrs
	guestPrefix  = "x."             // after either: a guest's xattr

	overrideXattr = "user.containers.override_stat"
)

// opaqueXattrs mark a directory that shows nothing of the lower: what root writes, then what an ordinary user can.
var opaqueXattrs = [...]string{"trusted.overlay.opaque", "user.overlay.opaque"}

// prefixFor is the namespace of the records of a host file of this type.
func prefixFor(hostMode uint32) string {
	if hostMode&unix.S_IFMT == unix.S_IFLNK {
		return linkPrefix
	}
	return recordPrefix
}

// meta is what the records of an upper file say.
type meta struct {
	origin uint64 // the lower file it was copied up from; 0 = none
	base   int64  // bytes below it that the file does not own are the lower's
	opaque bool
	over   *override
	links  *linkCount
	caps   bool // has the guest's security.capability
	acl    bool // has the guest's access ACL
	defacl bool // has the guest's default ACL
}

// readMeta reads the records of the file at p, whose host mode is known. Most files have none: one system call.
func readMeta(p place, hostMode uint32) (m meta, err error) {
	prefix := prefixFor(hostMode)
	err = p.xattrs(func(name string) error {
		rest, ours := strings.CutPrefix(name, prefix)
		switch {
		case name == overrideXattr:
			v, err := p.xattr(name)
			if err != nil {
				return err
			}
			m.over, err = parseOverride(string(v), hostMode)
			return err
		case name == opaqueXattrs[0] || name == opaqueXattrs[1]:
			v, err := p.xattr(name)
			if err != nil {
				return err
			}
			m.opaque = m.opaque || string(v) == "y"
		case !ours:
		case rest == "origin":
			v, err := p.xattr(name)
			if err != nil {
				return err
			}
			m.origin, m.base, err = parseOrigin(string(v))
			return err
		case rest == "nlink":
			v, err := p.xattr(name)
			if err != nil {
				return err
			}
			m.links, err = parseLinks(string(v))
			return err
		case rest == guestPrefix+xattrCaps:
			m.caps = true
		case rest == guestPrefix+xattrACL:
			m.acl = true
		case rest == guestPrefix+xattrDefaultACL:
			m.defacl = true
		}
		return nil
	})
	return m, err
}

func formatOrigin(id uint64, base int64) string { return fmt.Sprintf("%x %d", id, base) }

func parseOrigin(s string) (id uint64, base int64, err error) {
	a, b, _ := strings.Cut(s, " ")
	id, err = strconv.ParseUint(a, 16, 64)
	if err == nil && b != "" {
		base, err = strconv.ParseInt(b, 10, 64)
	}
	if err != nil || id == 0 || id >= firstUpper || base < 0 {
		return 0, 0, fmt.Errorf("upper has a damaged origin record %.40q: %w", s, unix.EIO)
	}
	return id, base, nil
}

// override is what a file is to the guest where the host's file is something else.
type override struct {
	uid, gid uint32
	mode     uint32 // st_mode with its type
	rdev     uint32
}

// format spells o as containers/storage does. The type is left out where it is the host file's own.
func (o *override) format(hostMode uint32) string {
	s := fmt.Sprintf("%d:%d:0%o", o.uid, o.gid, o.mode&07777)
	if o.mode&unix.S_IFMT == hostMode&unix.S_IFMT {
		return s
	}
	switch o.mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return s + ":symlink"
	case unix.S_IFIFO:
		return s + ":pipe"
	case unix.S_IFSOCK:
		return s + ":socket"
	case unix.S_IFBLK:
		return fmt.Sprintf("%s:block-%d-%d", s, major(o.rdev), minor(o.rdev))
	case unix.S_IFCHR:
		return fmt.Sprintf("%s:char-%d-%d", s, major(o.rdev), minor(o.rdev))
	}
	return s
}

// parseOverride reads what override.format and containers/storage write, for a file that is hostMode on the host.
func parseOverride(s string, hostMode uint32) (*override, error) {
	bad := fmt.Errorf("upper has a damaged %s %.60q: %w", overrideXattr, s, unix.EIO)
	f := strings.SplitN(s, ":", 4)
	if len(f) < 3 {
		return nil, bad
	}
	var v [3]uint64
	for i, base := range []int{10, 10, 8} {
		var err error
		if v[i], err = strconv.ParseUint(f[i], base, 32); err != nil {
			return nil, bad
		}
	}
	o := &override{uid: uint32(v[0]), gid: uint32(v[1]), mode: uint32(v[2])&07777 | hostMode&unix.S_IFMT}
	if len(f) < 4 || f[3] == "file" || f[3] == "dir" {
		return o, nil
	}
	// Only a regular file stands for something else.
	if hostMode&unix.S_IFMT != unix.S_IFREG {
		return nil, bad
	}
	kind, dev, _ := strings.Cut(f[3], "-")
	types := map[string]uint32{"symlink": unix.S_IFLNK, "pipe": unix.S_IFIFO, "socket": unix.S_IFSOCK,
		"block": unix.S_IFBLK, "char": unix.S_IFCHR}
	typ, ok := types[kind]
	if !ok {
		return nil, bad
	}
	o.mode = o.mode&07777 | typ
	if typ == unix.S_IFBLK || typ == unix.S_IFCHR {
		a, b, _ := strings.Cut(dev, "-")
		maj, err1 := strconv.ParseUint(a, 10, 12)
		min, err2 := strconv.ParseUint(b, 10, 20)
		if err1 != nil || err2 != nil {
			return nil, bad
		}
		o.rdev = mkdev(uint32(maj), uint32(min))
	}
	return o, nil
}

// Device numbers as FUSE carries them, which is the kernel's new_encode_dev.
func major(rdev uint32) uint32 { return rdev >> 8 & 0xfff }
func minor(rdev uint32) uint32 { return rdev&0xff | rdev>>12&0xfff00 }
func mkdev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&0xfff00<<12
}

// linkCount says how many names a file has that is copied up and has several names in the lower, some of which may still
// be only there. It is relative to a count that the coming change of the name space alters by itself, or does not:
// so the record is true before and after that change, whenever a crash comes.
type linkCount struct {
	upper bool // relative to the host's st_nlink, else to the lower's
	delta int
}

func (l *linkCount) format() string {
	base := "L"
	if l.upper {
		base = "U"
	}
	return fmt.Sprintf("%s%+d", base, l.delta)
}

func parseLinks(s string) (*linkCount, error) {
	if len(s) > 1 && (s[0] == 'U' || s[0] == 'L') {
		if d, err := strconv.ParseInt(s[1:], 10, 32); err == nil {
			return &linkCount{upper: s[0] == 'U', delta: int(d)}, nil
		}
	}
	return nil, fmt.Errorf("upper has a damaged link count %.40q: %w", s, unix.EIO)
}

// names is the number of names the guest sees.
func (l *linkCount) names(host, lower uint32) int {
	if l.upper {
		return int(host) + l.delta
	}
	return int(lower) + l.delta
}
