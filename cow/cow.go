package cow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/fs"
)

// Lower is the read-only tree beneath an upper; *fs.Tree is one. Ids are stable for ever, above 0 and below 1<<32, and
// fs.Root is the root's. Errors are what fs.Errno understands. Only Lookup, ReadDir and ReadAt may wait.
type Lower interface {
	Lookup(ctx context.Context, parent uint64, name string) (uint64, fs.Attr, error)
	Attr(ctx context.Context, id uint64) (fs.Attr, error)
	// ReadDir calls fn for the entries from ordinal from on, in an order that never changes, until it returns false.
	ReadDir(ctx context.Context, id uint64, from int, fn func(name string, id uint64, a fs.Attr) bool) error
	Readlink(ctx context.Context, id uint64) (string, error)
	Getxattr(ctx context.Context, id uint64, name string) ([]byte, error)
	Listxattr(ctx context.Context, id uint64) ([]string, error)
	// ReadAt is short only at the end of the file, and then without an error.
	ReadAt(ctx context.Context, id uint64, p []byte, off int64) (int, error)
}

var _ Lower = (*fs.Tree)(nil)

// firstUpper is the first id of files that have none in the lower.
const firstUpper = 1 << 32

// Options are the settings of New. The zero value works.
type Options struct {
	// LowerDigest names the lower for good, as an image's manifest digest does. An upper that was written over another
	// is refused with ErrOtherLower.
	LowerDigest string
	// Bytes and Inodes limit what the upper may take of the host's disk; 0 is no limit. With Bytes alone there may be a
	// file for every 4 KiB of it. What is beyond is ENOSPC.
	Bytes, Inodes int64

	// For tests: what the host is taken to refuse although it would not.
	noOwners, noDevices bool
}

// ErrInUse says that an upper has another server already.
var ErrInUse = errors.New("it is in use: unmount it, or stop its sandbox, first")

// ErrOtherLower says that an upper belongs to another lower than the one it was to be put over.
var ErrOtherLower = errors.New("upper belongs to another image")

// FS is a writable tree; it serves any number of requests at a time. See the package comment for its locks.
type FS struct {
	fuse.RawFileSystem // answers what FS has not: ENOSYS

	lower    Lower
	upper    *upper
	root     *node
	quota    *quota
	handles  handles
	listings listings

	tree sync.RWMutex // places and attributes of all nodes, and the upper's name space

	tableMu sync.Mutex
	table   map[uint64]*node // by FUSE's node id; guarded by tableMu

	indexed  atomic.Bool // index/ may hold something
	rootless atomic.Bool // the root has no attributes of its own yet; see root.go
}

var _ fuse.RawFileSystem = (*FS)(nil)

// New puts the upper directory dir, which must exist, over lower. An empty directory becomes a new upper. The caller
// closes the FS when nothing serves it any more, and then the lower.
func New(lower Lower, dir string, o Options) (*FS, error) {
	u, err := openUpper(dir, o)
	if err != nil {
		return nil, err
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		lower:         lower,
		upper:         u,
		table:         make(map[uint64]*node),
	}
	m, err := readMeta(place{u.top.fd, "."}, unix.S_IFDIR)
	if err == nil {
		f.quota, err = openQuota(u, o)
	}
	if err != nil {
		u.close()
		return nil, fmt.Errorf("open upper %s: %w", dir, err)
	}
	f.root = &node{id: fs.Root, lower: fs.Root, kind: unix.S_IFDIR, lookups: 1, over: m.over, dir: new(dirState)}
	f.root.acl, f.root.defacl = m.acl, m.defacl
	f.root.up.Store(true)
	f.table[fs.Root] = f.root
	f.handles.pin(f.root, u.top)
	f.handles.pin(&u.orphans, u.orphansHandle)
	f.handles.pin(&u.index, u.indexHandle)
	f.handles.pin(&u.ranges, u.rangesHandle)
	f.indexed.Store(!u.indexEmpty)
	f.rootless.Store(m.over == nil)
	if err := f.adoptRoot(context.Background(), false); err != nil {
		u.close()
		return nil, fmt.Errorf("open upper %s: take over the root directory: %w", dir, err)
	}
	return f, nil
}

// Close gives up the upper's descriptors. What was written is in the upper already.
func (f *FS) Close() error {
	f.handles.closeAll()
	f.tree.Lock()
	defer f.tree.Unlock()
	f.emptyOrphans()
	return errors.Join(f.quota.save(f.upper), f.upper.close())
}

func (f *FS) String() string { return "cow" }

// ServerOptions adds to o what a server of an FS must negotiate: permission checks by the kernel, the clearing of setuid
// bits by us (which spares it a GETXATTR before every write), and no locks, no opening truncation and no privileges that
// the package comment counts on being absent.
func ServerOptions(o *fuse.MountOptions) *fuse.MountOptions {
	out := *o
	out.EnableLocks = false
	out.DisableXAttrs = false
	out.IgnoreSecurityLabels = false
	out.EnableSymlinkCaching = true
	out.EnableAcl = true
	out.ExplicitDataCacheControl = true
	out.ExtraCapabilities |= fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_DONT_MASK |
		fuse.CAP_SETXATTR_EXT | fuse.CAP_READDIRPLUS_AUTO
	out.ExtraCapabilities &^= fuse.CAP_ATOMIC_O_TRUNC
	out.DisabledCapabilities &^= fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_NO_OPENDIR_SUPPORT
	out.Options = nil
	for _, opt := range o.Options {
		if opt != "ro" && opt != "default_permissions" {
			out.Options = append(out.Options, opt)
		}
	}
	out.Options = append(out.Options, "default_permissions")
	return &out
}

// forever is how long the kernel may keep entries and attributes: it sees every change, for it makes them all.
const forever = 1 << 32

// fail turns an error into what the kernel is told.
func fail(err error) fuse.Status { return fuse.Status(fs.Errno(err)) }

// waiting is the context of one request: cancelled when the caller was interrupted.
type waiting struct {
	context.Context
	cancel <-chan struct{}
}

func request(cancel <-chan struct{}) context.Context {
	if cancel == nil {
		return context.Background()
	}
	return waiting{context.Background(), cancel}
}

func (w waiting) Done() <-chan struct{} { return w.cancel }

func (w waiting) Err() error {
	select {
	case <-w.cancel:
		return context.Canceled
	default:
		return nil
	}
}

// StatFs answers for the disk that the upper is on: that is where space runs out.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := unix.Fstatfs(f.upper.top.fd, &st); err != nil {
		return fail(err)
	}
	out.Blocks, out.Bfree, out.Bavail = st.Blocks, st.Bfree, st.Bavail
	out.Files, out.Ffree = st.Files, st.Ffree
	out.Bsize, out.Frsize, out.NameLen = uint32(st.Bsize), uint32(st.Frsize), 255
	f.quota.statfs(out)
	return fuse.OK
}

// The requests that the kernel does without, once told so.

func (f *FS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status    { return fuse.ENOSYS }
func (f *FS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }
func (f *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status                 { return fuse.ENOSYS }
func (f *FS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status               { return fuse.ENOSYS }

func (f *FS) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.ENOSYS
}

// Ioctl knows none: file attributes (chattr) are refused as on a file system that has none.
func (f *FS) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) (code fuse.Status) {
	return fuse.Status(unix.ENOTTY)
}

// umask reads the process's umask, which nothing can ask for without changing it but this file (proc_pid_status(5)).
func umask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	return parseUmask(b)
}
