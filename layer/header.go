package layer

import (
	"archive/tar"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// xattrRecord begins the PAX records that hold extended attributes: star(1), "SCHILY.xattr".
const xattrRecord = "SCHILY.xattr."

// attributes are what a tar header and a TOC's entry both say, as they spell it.
type attributes struct {
	name, link   string
	mode         int64
	uid, gid     int64
	major, minor int64
	size         int64
	mtime        time.Time
	typ          byte // a tar type flag
}

// entry makes the Entry that a tells of. ok is false for what is not a file, as a PAX global header.
func (a *attributes) entry() (e Entry, ok bool, err error) {
	if a.uid < 0 || a.uid > math.MaxUint32 || a.gid < 0 || a.gid > math.MaxUint32 {
		return e, false, refused("%q has the owner %d:%d, which is not a user and a group", short(a.name), a.uid, a.gid)
	}
	e = Entry{
		Name: a.name, Mode: uint32(a.mode & 0o7777), UID: uint32(a.uid), GID: uint32(a.gid),
		Mtime: Time{Sec: a.mtime.Unix(), Nsec: uint32(a.mtime.Nanosecond())},
	}
	switch a.typ {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		e.Mode |= unix.S_IFREG
		e.Size = a.size
	case tar.TypeDir:
		e.Mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		e.Mode |= unix.S_IFLNK
		e.Linkname = a.link
	case tar.TypeLink:
		e.Kind = HardLink
		e.Linkname = a.link
	case tar.TypeFifo:
		e.Mode |= unix.S_IFIFO
	case tar.TypeChar:
		e.Mode |= unix.S_IFCHR
	case tar.TypeBlock:
		e.Mode |= unix.S_IFBLK
	case tar.TypeXGlobalHeader, 'V': // records for all files, a volume's label: neither is a file
		return e, false, nil
	default:
		return e, false, refused("%q is of the unknown tar type %q", short(a.name), a.typ)
	}
	if kind := e.Mode & unix.S_IFMT; kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		if a.major < 0 || a.major > 0xfff || a.minor < 0 || a.minor > 0xfffff {
			return e, false, refused("%q is device %d:%d, which Linux cannot have", short(a.name), a.major, a.minor)
		}
		// include/linux/kdev_t.h, new_encode_dev
		e.Rdev = uint32(a.minor&0xff | a.major<<8 | (a.minor&^0xff)<<12)
	}
	return e, true, nil
}

// headerEntry is the Entry of a tar header.
func headerEntry(h *tar.Header) (Entry, bool, error) {
	a := attributes{
		name: h.Name, link: h.Linkname, mode: h.Mode, uid: int64(h.Uid), gid: int64(h.Gid), major: h.Devmajor,
		minor: h.Devminor, size: h.Size, mtime: h.ModTime, typ: h.Typeflag,
	}
	e, ok, err := a.entry()
	if err != nil || !ok {
		return e, ok, err
	}
	for k, v := range h.PAXRecords {
		if name, found := strings.CutPrefix(k, xattrRecord); found {
			e.Xattrs = append(e.Xattrs, Xattr{Name: name, Value: []byte(v)})
		}
	}
	return e, true, nil
}

// sparse says whether h's data is not stored as it is: tar(5), "Sparse files" of GNU and of PAX.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}
