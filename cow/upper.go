package cow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// upper is the upper directory: its descriptors, and what its host lets us do there.
type upper struct {
	path string // for messages

	// Pinned directories; immutable.
	top, private, work, orphansHandle, indexHandle, rangesHandle *handle
	// Nodes that stand for the private directories as parents of files that have no name of the guest's.
	orphans, index, ranges node

	owners   bool   // files have their real owners
	devices  bool   // whiteouts are character devices
	bothForm bool   // whiteouts of the form that is not written here may exist
	uid, gid uint32 // of files we create without saying more
	umask    uint32

	indexEmpty bool // when opened
	serial     atomic.Uint64
}

// format is the file format.json.
type format struct {
	Version int    `json:"version"`
	Lower   string `json:"lower"` // digest
	// Whiteouts is the form whiteouts have: "device", "file", or "both".
	Whiteouts string `json:"whiteouts"`
}

const formatVersion = 1

func openUpper(dir string, o Options) (_ *upper, err error) {
	u := &upper{path: dir, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), umask: umask()}
	defer func() {
		if err != nil {
			u.close()
			err = fmt.Errorf("open upper %s: %w", dir, err)
		}
	}()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	u.top = &handle{fd: fd, refs: 1}
	empty, err := isEmpty(fd)
	if err != nil {
		return nil, err
	}
	if u.private, err = u.subdir(u.top, privateDir); err != nil {
		return nil, err
	}
	// One server at a time: two would not see each other's changes.
	if err := unix.Flock(u.private.fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, ErrInUse
	}
	for name, h := range map[string]**handle{"work": &u.work, "orphans": &u.orphansHandle, "index": &u.indexHandle, "ranges": &u.rangesHandle} {
		if *h, err = u.subdir(u.private, name); err != nil {
			return nil, err
		}
	}
	for _, n := range []*node{&u.orphans, &u.index, &u.ranges} {
		n.kind = unix.S_IFDIR
		n.up.Store(true)
	}
	for _, h := range []*handle{u.work, u.orphansHandle} {
		if err := u.purge(h.fd); err != nil {
			return nil, err
		}
	}
	if u.indexEmpty, err = isEmpty(u.indexHandle.fd); err != nil {
		return nil, err
	}
	u.owners = !o.noOwners && u.canOwn()
	u.devices = !o.noDevices && u.canDevices()
	return u, u.adopt(empty, o.LowerDigest)
}

// adopt checks that the upper belongs to the lower of that digest, and makes it do so where it is new.
func (u *upper) adopt(empty bool, digest string) error {
	form := "file"
	if u.devices {
		form = "device"
	}
	var was format
	b, err := readSmall(place{u.private.fd, "format.json"})
	switch {
	case errors.Is(err, unix.ENOENT):
		was = format{Version: formatVersion, Lower: digest, Whiteouts: form}
		if !empty {
			was.Whiteouts = "both" // somebody else's upper, or a layer unpacked
		}
		if err := u.newRoot(); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(b, &was); err != nil {
			return fmt.Errorf("%s/format.json is damaged: %w", privateDir, err)
		}
		if was.Version != formatVersion {
			return fmt.Errorf("has format %d, this program knows %d", was.Version, formatVersion)
		}
		if was.Lower != digest {
			return fmt.Errorf("%w: it was written over %q and would be put over %q; use the first, or an empty directory",
				ErrOtherLower, was.Lower, digest)
		}
		if was.Whiteouts == form {
			u.bothForm = false
			return nil
		}
		was.Whiteouts = "both"
	}
	u.bothForm = was.Whiteouts == "both"
	now, err := json.Marshal(was)
	if err != nil || bytes.Equal(now, b) {
		return err
	}
	return u.writeSmall("format.json", now)
}

// subdir opens, or first makes, a private directory.
func (u *upper) subdir(in *handle, name string) (*handle, error) {
	p := place{in.fd, name}
	if err := unix.Mkdirat(in.fd, name, 0o700); err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	fd, err := p.openDir()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return &handle{fd: fd, refs: 1}, nil
}

// purge removes everything in a private directory, to any depth.
func (u *upper) purge(dir int) error {
	type level struct {
		fd   int
		name string
	}
	stack := []level{{fd: dir}}
	for len(stack) > 0 {
		cur := stack[len(stack)-1]
		var sub string
		var failed error
		err := eachName(cur.fd, func(name string, _ uint8) bool {
			err := place{cur.fd, name}.unlink()
			if err == unix.EISDIR || err == unix.EPERM {
				sub = name
				return false
			}
			failed = err
			return err == nil
		})
		if err = errors.Join(err, failed); err == nil && sub != "" {
			var fd int
			if fd, err = (place{cur.fd, sub}).openDir(); err == nil {
				stack = append(stack, level{fd, sub})
				continue
			}
		}
		stack = stack[:len(stack)-1]
		if cur.fd != dir {
			unix.Close(cur.fd)
		}
		if err == nil && len(stack) > 0 {
			err = place{stack[len(stack)-1].fd, cur.name}.rmdir()
		}
		if err != nil {
			for _, l := range stack {
				if l.fd != dir {
					unix.Close(l.fd)
				}
			}
			return fmt.Errorf("clean up: %w", err)
		}
	}
	return nil
}

// temp is a new name in work/.
func (u *upper) temp() place {
	return place{u.work.fd, strconv.FormatUint(u.serial.Add(1), 36)}
}

// canOwn reports whether files can be given away and carry trusted xattrs here, as root's can.
func (u *upper) canOwn() bool {
	if u.uid != 0 {
		return false
	}
	t := u.temp()
	if unix.Symlinkat("x", t.dir, t.name) != nil {
		return false
	}
	defer t.unlink()
	return t.chown(65534, 65534) == nil && t.setxattr(linkPrefix+"probe", []byte("y"), 0) == nil
}

// canDevices reports whether whiteouts can be devices 0:0 here, with the renames they need: ordinary users may make that
// one device since Linux 5.8.
func (u *upper) canDevices() bool {
	a, b := u.temp(), u.temp()
	defer a.unlink()
	defer b.unlink()
	if unix.Mknodat(a.dir, a.name, unix.S_IFCHR, 0) != nil || a.rename(b, unix.RENAME_WHITEOUT) != nil {
		return false
	}
	st, err := a.stat()
	return err == nil && isWhiteout(&st) && a.rename(b, unix.RENAME_EXCHANGE) == nil
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// isEmpty reports whether a directory has nothing but private parts.
func isEmpty(fd int) (bool, error) {
	empty := true
	err := eachName(fd, func(name string, _ uint8) bool {
		empty = name == privateDir
		return empty
	})
	return empty, err
}

// readSmall reads a file of at most 64 KiB.
func readSmall(p place) ([]byte, error) {
	fd, err := p.open(unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 1<<16)
	n, err := readFull(fd, buf, 0)
	return buf[:n], err
}

// writeSmall replaces a private file for good, or not at all.
func (u *upper) writeSmall(name string, b []byte) error {
	t := u.temp()
	fd, err := t.open(unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = writeAll(fd, b, 0)
	err = errors.Join(err, unix.Fsync(fd), unix.Close(fd))
	if err == nil {
		err = t.rename(place{u.private.fd, name}, 0)
	}
	if err != nil {
		t.unlink()
	}
	return err
}

func (u *upper) close() error {
	var err error
	for _, h := range []*handle{u.rangesHandle, u.indexHandle, u.orphansHandle, u.work, u.private, u.top} {
		if h != nil && h.fd >= 0 {
			err = errors.Join(err, unix.Close(h.fd))
			h.fd = -1
		}
	}
	return err
}

func parseUmask(status []byte) uint32 {
	_, rest, ok := bytes.Cut(status, []byte("\nUmask:\t"))
	if line, _, _ := bytes.Cut(rest, []byte("\n")); ok {
		if v, err := strconv.ParseUint(string(line), 8, 32); err == nil {
			return uint32(v)
		}
	}
	return 0o777 // every mode is then set for itself
}
