package layer

// A layer comes from whoever pushed the image. These bounds hold for every form of it; a layer that is past one of them
// is refused with an error that names the bound.
const (
	// MaxEntries is the number of entries a layer may have, made-up parents included. It fits an inode number of 32 bits
	// beside the layer's own number.
	MaxEntries = 1<<24 - 1
	// MaxPath is the longest name of an entry or target of a link, bytes: Linux's PATH_MAX without its NUL.
	MaxPath = 4095
	// MaxName is the longest component of a name, bytes: Linux's NAME_MAX.
	MaxName = 255
	// MaxDepth is the number of components a name may have.
	MaxDepth = 1024
	// MaxXattrs is the number of extended attributes of an entry.
	MaxXattrs = 256
	// MaxXattrValue is the longest value of an extended attribute, bytes: Linux's XATTR_SIZE_MAX.
	MaxXattrValue = 64 << 10
	// MaxText is what all names, link targets and extended attributes of a layer may take together, bytes.
	MaxText = 1 << 30
	// MaxChunks is the number of chunks of a layer: 64 TiB of files at ChunkSize.
	MaxChunks = 1 << 24
	// MaxChunkSize is the longest chunk a TOC may name, bytes.
	MaxChunkSize = 64 << 20
	// MaxInner is how far into a compressed member a TOC may place a chunk, bytes.
	MaxInner = 256 << 20
	// MaxTOC is the longest TOC, bytes of its JSON.
	MaxTOC = 512 << 20
	// MaxTOCBlob is the longest TOC as it is stored in the blob, bytes.
	MaxTOCBlob = 64 << 20
	// MaxExpansion is how many times its blob's size a layer may unpack to, holes of sparse files included, once it is
	// past FreeExpansion. Deflate cannot do more than 1032.
	MaxExpansion = 1100
	// FreeExpansion is what every layer may unpack to, bytes.
	FreeExpansion = 16 << 30
	// MaxWindow is the largest zstd window that is accepted, bytes: what zstd --long asks for.
	MaxWindow = 128 << 20
)

// maxExpanded is how many bytes a blob of size bytes may unpack to.
func maxExpanded(size int64) int64 {
	if size > (1<<62)/MaxExpansion {
		return 1 << 62
	}
	return max(size*MaxExpansion, FreeExpansion)
}
