// Package hostdir shows a directory of the host, or one file of it, to a guest as a fuse.RawFileSystem.
//
// The guest is hostile. It names files by numbers that were given out and by single path components; every one is opened
// below the directory with openat2(2), which follows no symbolic link and leaves neither the directory nor its file
// system, and is checked to be the file that was meant. Symbolic links are text, for the guest to follow in its own tree.
// Devices cannot be made, FIFOs, sockets and devices are never opened, and set-uid and set-gid bits of files are neither
// shown nor set, so that nothing a guest leaves behind gives anybody on the host a privilege. A read-only file system
// refuses every change here, whatever the guest's mount says. Numbers given out and files open are bounded.
//
// What the host changes is seen at once: file data when it is read next, names and attributes within attrValid.
//
// Locks: FS.mu alone is held with nothing else and never across a system call that may block on a disk; handle.mu is held
// across reads and writes of that file.
package hostdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxNodes is how many files a guest can hold numbers of.
	maxNodes = 1 << 20
	// maxHandles is how many files and directories it can have open, where the process may have as many twice over.
	maxHandles = 8192
	// attrValid is how long the guest may believe what it was told of a file, so that looking one up and asking for its
	// attributes is one request; dirValid the same of the directories on the way to it.
	attrValid = 10 * time.Millisecond
	dirValid  = 100 * time.Millisecond
)

// Options are the settings of an FS. The zero value shows a directory for reading and writing.
type Options struct {
	ReadOnly bool
}

// FS is a directory of the host, or one file. It implements fuse.RawFileSystem and is safe for concurrent use.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS
	readOnly           bool
	owner              owner
	maxHandles         int

	mu      sync.Mutex
	nodes   map[uint64]*node // by id
	byKey   map[key]*node
	nextID  uint64
	handles map[uint64]*handle
	nextFH  uint64
	root    *node
	recent  [256]*node // whose recent is open, or was
	oldest  int        // in recent
}

var _ fuse.RawFileSystem = (*FS)(nil)

// Open returns a file system of the directory path or, where that is a regular file, one whose root directory has that
// file alone, under the name FileName. path itself may be or contain symbolic links. The caller closes it when nothing is
// served from it any more.
func Open(path string, o Options) (*FS, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("open host directory: %w", err)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open host directory: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open host directory: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), readOnly: o.ReadOnly, owner: callerOwner(), maxHandles: handleLimit(),
		nodes: make(map[uint64]*node), byKey: make(map[key]*node), nextID: fuse.FUSE_ROOT_ID, handles: make(map[uint64]*handle),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		f.root = f.newNode(&st)
		f.root.fixed = fd
	case unix.S_IFREG:
		f.root = f.newNode(&unix.Stat_t{Mode: unix.S_IFDIR | 0o555, Nlink: 2})
		f.root.only = f.newNode(&st)
		f.root.only.fixed = fd
	default:
		unix.Close(fd)
		return nil, fmt.Errorf("open host directory: %s is neither a directory nor a regular file", path)
	}
	return f, nil
}

// FileName is what the file is called in a file system of one file.
const FileName = "file"

// IsFile says that f shows one file.
func (f *FS) IsFile() bool { return f.root.only != nil }

// handleLimit leaves half of the descriptors that this process may open to others.
func handleLimit() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur/2 > maxHandles {
		return maxHandles
	}
	return int(l.Cur / 2)
}

// ServerOptions are the settings to serve an FS with: data is looked for anew when a file has changed, there are no
// extended attributes, and locks are the guest's own.
func ServerOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		Name: "msb-host", FsName: "msb-host",
		MaxWrite: 512 << 10, MaxBackground: 64,
		DisableXAttrs: true, DisableReadDirPlus: true,
		DisabledCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_PASSTHROUGH,
		Options:              []string{"default_permissions"},
	}
}

func (f *FS) String() string { return "msb-host" }

// Close closes everything that f has open. Requests must have ended.
func (f *FS) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.handles {
		unix.Close(h.fd)
	}
	var err error
	for _, n := range f.nodes {
		n.shut()
		if n.fixed >= 0 {
			err = errors.Join(err, unix.Close(n.fixed))
		}
	}
	f.nodes, f.byKey, f.handles = nil, nil, nil
	return err
}

// owner is how the host's users are shown to the guest. Root shows them as they are. Of anybody else's processes every file
// is made as that user, who is shown as the guest's root, as in a user namespace of one user.
type owner struct {
	mapped   bool
	uid, gid uint32 // the guest's root, where mapped
}

const nobody = 65534 // other users, where mapped: overflowuid of user_namespaces(7)

func callerOwner() owner {
	return owner{mapped: os.Geteuid() != 0, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
}

func (o owner) shown(uid, gid uint32) (uint32, uint32) {
	if !o.mapped {
		return uid, gid
	}
	one := func(id, own uint32) uint32 {
		if id == own {
			return 0
		}
		return nobody
	}
	return one(uid, o.uid), one(gid, o.gid)
}

// chown gives what fd has open, or a symbolic link, to users of the guest; -1 leaves one as it is.
func (o owner) chown(fd int, uid, gid int) error {
	if !o.mapped {
		return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
	}
	if uid > 0 || gid > 0 {
		return unix.EPERM
	}
	return nil
}
