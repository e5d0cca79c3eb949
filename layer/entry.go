package layer

import (
	"context"
	"io"
)

// Digest is the sha256 of a chunk's bytes, the name it has in every cache.
type Digest [32]byte

// Descriptor names a layer as its manifest does.
type Descriptor struct {
	Digest      string            // of the blob, "sha256:<hex>"
	DiffID      string            // of the uncompressed tar, from the image's config; "" when unknown
	MediaType   string            // as the manifest spells it
	Size        int64             // of the blob, in bytes
	Annotations map[string]string // of the manifest's layer descriptor; where a TOC's digest is vouched for
}

// Blob is a layer's bytes as the registry holds them. It is safe for concurrent use.
type Blob interface {
	// Size is the blob's length in bytes.
	Size() int64
	// ReadAt fills p from offset off, as io.ReaderAt does: never short without an error.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Open reads the blob in order from offset off to its end. Cancelling ctx ends the stream. The caller closes it.
	Open(ctx context.Context, off int64) (io.ReadCloser, error)
}

// Entry is one name of a layer. Whiteouts are decoded: no Entry is ever called ".wh.".
type Entry struct {
	Name     string // cleaned, relative to the root, without a leading or trailing slash; "" is the root
	Kind     Kind
	Mode     uint32 // st_mode: type and permission bits, setuid, setgid and sticky included; of Kind Plain and Implicit
	UID, GID uint32
	Rdev     uint32 // as the kernel's new_encode_dev packs it; of devices
	Size     int64  // of regular files, bytes; of symlinks, len(Linkname)
	Mtime    Time
	Linkname string // the target of a symlink as stored; of a HardLink the cleaned name of its target
	Xattrs   []Xattr
}

// Kind says what an Entry means to the merged tree.
type Kind uint8

const (
	// Plain is a file, directory, symlink, device, fifo or socket.
	Plain Kind = iota
	// Implicit is a directory that the layer has only as a parent of something: it shows a lower layer's directory of
	// that name with its attributes, and where there is none is 0755 root:root.
	Implicit
	// HardLink is another name of the file called Linkname.
	HardLink
	// Whiteout hides Name in all lower layers.
	Whiteout
	// Opaque hides everything that lower layers have below the directory Name.
	Opaque
)

// Time is a point in time as stat has it; seconds may be negative.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Chunk is a run of one file's bytes.
type Chunk struct {
	Digest Digest
	Offset int64 // of its first byte in the file
	Size   int64 // bytes, never 0
	Index  int   // its place in the layer's chunk table, blob order
}

// ChunkSize is the longest Chunk of a streamed layer, bytes: files are cut at its multiples. It is eStargz's default, so
// that both forms of a layer share their chunks.
const ChunkSize = 4 << 20
