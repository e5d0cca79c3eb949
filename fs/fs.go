// Package fs shows an image's layers as one read-only file tree.
//
// A [Tree] has two states behind one set of methods. While a layer streams the tree is growing: names are kept in memory
// as they pass by, and a question waits exactly as long as its answer is uncertain. Once every layer's list of entries
// is complete the tree is sealed: a flat file that is mapped, shared by every mount of the image, and never parsed. Both
// give the same answers and the same ids, so that the swap is invisible.
//
// The merge is what unpacking the layers one over the other gives: the topmost layer wins, whiteouts and opaque
// directories hide lower layers only, anything but a directory hides a lower directory for good
// (https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md).
//
// Locks: grow.mu guards the growing tree and is never held while waiting or calling out; stats.mu and ahead.mu are
// leaves.
package fs

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/microsandbox/msb-fs/layer"
)

// ID names a file of a tree. It is (layer+1)<<24 | entry, with layer counted from the bottom and entry its number in
// that layer, and so the same while streaming, sealed, and after a rebuild. It fits 32 bits, as the st_ino of a 32-bit
// program must. Names that are hard links of one file share its ID. 0 names nothing.
type ID = uint64

// Root is the ID of every tree's root directory, FUSE's own.
const Root ID = 1

// What an ID can hold.
const (
	MaxLayers  = 127
	MaxEntries = 1<<24 - 1 // of one layer
)

func makeID(l int, entry uint32) ID { return ID(l+1)<<24 | ID(entry) }

// split undoes makeID; l is -1 for Root.
func split(id ID) (l int, entry uint32) { return int(id>>24) - 1, uint32(id & (1<<24 - 1)) }

// Layer is what a tree asks of a layer; *layer.Layer is one.
type Layer interface {
	// Entries returns the entries from number from on, in layer order; it blocks until there is one or the layer ended.
	Entries(ctx context.Context, from int) (es []layer.Entry, done bool, err error)
	// Chunk returns the chunk that holds byte off of an entry.
	Chunk(ctx context.Context, entry int, off int64) (layer.Chunk, error)
	// Fetch reads a chunk's bytes from the layer's blob.
	Fetch(ctx context.Context, c layer.Chunk) ([]byte, error)
	// Place says, without waiting, where the chunk is that holds byte off of an entry; not ok where that is not known, or
	// there is nothing to read.
	Place(entry int, off int64) (p layer.Place, ok bool)
	// Bring puts chunks, by the numbers of their Places, ascending, into the tree's cache by one read of the blob.
	Bring(ctx context.Context, nums []int) error
}

// Cache holds verified chunks by their sha256; *chunkcache.Cache is one.
type Cache interface {
	// ReadAt reads bytes [off, off+len(p)) of chunk k, size bytes long; fill gets the chunk where the cache has it not.
	ReadAt(ctx context.Context, k [32]byte, size int64, p []byte, off int64, fill func(context.Context) ([]byte, error)) (int, error)
	// Has reports whether a ReadAt of k would need no fill.
	Has(k [32]byte) bool
}

// Attr is what stat shows of a file. Its access and change times are its Mtime.
type Attr struct {
	Mode     uint32 // st_mode, type bits included
	Nlink    uint32 // names in the tree; of a directory 2 and one for each subdirectory, or 1 while that is not known
	UID, GID uint32
	Rdev     uint32
	Size     int64
	Mtime    layer.Time
	// Provisional says that a streaming layer may still change Nlink, and of a directory the rest: not to be cached.
	Provisional bool
	// Implied says that a directory has been seen only as a part of paths: its other attributes are a guess.
	Implied bool
}

// IsDir reports whether a is a directory's.
func (a *Attr) IsDir() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// What a file is, by its mode.
const (
	typeMask = syscall.S_IFMT
	typeFile = syscall.S_IFREG
)

// dirSize is the st_size of directories, one block as on ext4.
const dirSize = 4096

// Errno translates an error of this package into what a system call returns; it is the only place that does. Anything
// unknown is EIO.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return no
	}
	switch {
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, fs.ErrPermission):
		return syscall.EPERM
	default:
		return syscall.EIO
	}
}
