// Package api is what the command lines and the daemon say to each other: HTTP with JSON bodies over a unix socket, so
// that curl can drive the daemon too. Requests that take time answer with a stream of JSON lines, one Event each.
package api

import (
	"time"
)

// Pull policies, as microsandbox spells them.
const (
	PullIfMissing = "if-missing"
	PullAlways    = "always"
	PullNever     = "never"
)

// Access are the registry settings of one call. The zero value means those of config.json.
type Access struct {
	Insecure *bool  `json:"insecure,omitempty"`
	CACerts  []byte `json:"ca_certs,omitempty"` // PEM
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	Platform string `json:"platform,omitempty"` // os/arch[/variant]
	// Env holds the caller's values of the variables that config.json names (password_env): the daemon's own environment
	// is that of whoever happened to start it.
	Env map[string]string `json:"env,omitempty"`
}

// ImageRequest names an image and how to get it.
type ImageRequest struct {
	Image  string `json:"image"`
	Pull   string `json:"pull,omitempty"` // a pull policy; "" is PullIfMissing
	Access Access `json:"access,omitzero"`
}

// PullRequest asks for an image to be cached.
type PullRequest struct {
	ImageRequest
	Lazy  bool `json:"lazy,omitempty"`  // resolve and index only
	Force bool `json:"force,omitempty"` // fetch again what is cached
}

// MountRequest asks for an image to be mounted on the host.
type MountRequest struct {
	ImageRequest
	Dir    string `json:"dir"`             // absolute
	Upper  string `json:"upper,omitempty"` // absolute; "" mounts read-only
	Verify string `json:"verify,omitempty"`
	Limit  int64  `json:"limit,omitempty"` // bytes that Upper may take; 0: no limit
}

// FileRequest asks for something inside an image.
type FileRequest struct {
	ImageRequest
	Path      string `json:"path"`
	Raw       []byte `json:"raw,omitempty"` // instead of Path, where that is not UTF-8
	Recursive bool   `json:"recursive,omitempty"`
}

// SandboxRequest asks for an image to be served to a microVM. The answer is a stream of Events that lasts as long as the
// sandbox: when the caller hangs up, the daemon stops serving it.
type SandboxRequest struct {
	ImageRequest
	ID     string `json:"id"`
	Later  bool   `json:"later,omitempty"`  // only ID counts: the rest comes by POST /v1/sandboxes/{id}/image
	Upper  string `json:"upper"`            // absolute; the writable layer
	Limit  int64  `json:"limit,omitempty"`  // bytes that Upper may take; 0: no limit
	Pinned string `json:"pinned,omitempty"` // a manifest digest to use instead of resolving Image
	Verify string `json:"verify,omitempty"`

	// What will run is how the daemon knows a start that it has seen before: Entrypoint and Args as for Argv.
	Entrypoint *string  `json:"entrypoint,omitempty"`
	Args       []string `json:"args,omitempty"`
	Env        []string `json:"env,omitempty"` // K=V, beside the image's
}

// UpperRequest names an upper directory that is not in use.
type UpperRequest struct {
	Upper  string `json:"upper"`           // absolute
	Image  string `json:"image,omitempty"` // what it must have been written over; "" is anything
	Access Access `json:"access,omitzero"`
}

// Change is a path that an upper directory has changed.
type Change struct {
	Path string `json:"path"`
	Kind string `json:"kind"` // added, changed or deleted
}

// CommitRequest asks for an upper directory to become the top layer of a new image, which goes to a registry or into an
// OCI image layout.
type CommitRequest struct {
	UpperRequest
	Reference string `json:"reference,omitempty"` // to push to
	Layout    string `json:"layout,omitempty"`    // or the layout's directory, absolute
	Tag       string `json:"tag,omitempty"`       // in the layout
}

// Committed is the new image.
type Committed struct {
	Digest string `json:"digest"` // of its manifest
}

// LoadRequest asks for the images of an archive to be taken into the store.
type LoadRequest struct {
	Path     string `json:"path"`               // of a directory or file, absolute
	Name     string `json:"name,omitempty"`     // reference of the archive's only image; "" takes those in the archive
	Platform string `json:"platform,omitempty"` // os/arch[/variant] to choose; "" is the host's
}

// SaveRequest asks for an image as an archive.
type SaveRequest struct {
	ImageRequest
	Format string `json:"format,omitempty"` // "" is FormatOCI
	Layout string `json:"layout,omitempty"` // directory to write to, absolute; of FormatDir
}

// Formats of archives, as podman spells them.
const (
	FormatOCI    = "oci-archive"    // a tar of an OCI image layout
	FormatDir    = "oci-dir"        // an OCI image layout
	FormatDocker = "docker-archive" // what docker save writes
)

// IndexRequest asks for the indexes of an image's layers to be published or fetched.
type IndexRequest struct {
	ImageRequest
	Repository string `json:"repository,omitempty"` // "" means config.json's, or the image's own
}

// PushedIndex is an artifact with an image's indexes.
type PushedIndex struct {
	Repository string `json:"repository"`
	Digest     string `json:"digest"`
	Layers     int    `json:"layers"`
}

// PulledIndex says how many layers' indexes have been fetched.
type PulledIndex struct {
	Layers int `json:"layers"`
}

// PruneRequest says what to remove beside what nothing leads to.
type PruneRequest struct {
	All    bool `json:"all,omitempty"`    // references of images that are not in use and that no sandbox is pinned to
	Chunks bool `json:"chunks,omitempty"` // chunks that no open image needs; they are fetched again when they are needed
}

// Freed is what has been removed.
type Freed struct {
	Images []Removed `json:"images"`
	Bytes  int64     `json:"bytes"` // of disk
}

// Removed is a reference that is not cached any more.
type Removed struct {
	Reference string `json:"reference"`
	Platform  string `json:"platform,omitempty"` // that it was pulled for, if one was named
}

// String is r as users see it: one reference can have been pulled for several platforms.
func (r Removed) String() string {
	if r.Platform == "" {
		return r.Reference
	}
	return r.Reference + " (" + r.Platform + ")"
}

// DiskUsage is what a home directory takes, bytes of disk where not said otherwise.
type DiskUsage struct {
	Chunks     int64 `json:"chunks"`      // number of chunks
	ChunkBytes int64 `json:"chunk_bytes"` // length of them
	InUse      int64 `json:"in_use"`      // of ChunkBytes, needed by open images
	DiskBytes  int64 `json:"disk_bytes"`  // of chunk files
	Limit      int64 `json:"limit"`       // that chunk files are kept to; 0: none
	Free       int64 `json:"free"`        // on the file system
	Blobs      int64 `json:"blobs"`       // of layers that have been loaded from archives, or are being pulled
	Indexes    int64 `json:"indexes"`     // of layers
	Trees      int64 `json:"trees"`       // of images
	Database   int64 `json:"database"`
	Sandboxes  int64 `json:"sandboxes"`
}

// Verified is what a check of all cached chunks has found.
type Verified struct {
	Chunks int64 `json:"chunks"`
	Bytes  int64 `json:"bytes"`
	Wrong  int64 `json:"wrong"` // dropped; they are fetched again when they are needed
}

// Event is one line of a stream. Exactly one of its parts is set beside Name and MS.
type Event struct {
	Name   string  `json:"event"`
	MS     float64 `json:"ms"` // since the daemon took the request
	Socket string  `json:"socket,omitempty"`
	Image  *Image  `json:"image,omitempty"`
	Layers []Layer `json:"layers,omitempty"`
	Error  *Error  `json:"error,omitempty"`
}

// Names of Events.
const (
	EventSocket   = "socket"         // the vhost-user-fs socket listens
	EventResolved = "resolved"       // the reference is pinned; Image is set
	EventIndexed  = "layers indexed" // every layer can be looked into, or streams; Layers is set
	EventKernelUp = "kernel up"      // the guest kernel asked for its root
	EventProgress = "progress"       // Layers is set
	EventMounted  = "mounted"
	EventComplete = "complete" // every byte is local
	EventLoaded   = "loaded"   // Image is in the store
	EventError    = "error"    // the last one
)

// Image is a cached, pinned image.
type Image struct {
	Reference string    `json:"reference"`
	Digest    string    `json:"digest"` // of the platform's manifest
	Platform  string    `json:"platform"`
	MediaType string    `json:"media_type"`
	Size      int64     `json:"size"` // compressed bytes of all layers
	Pinned    time.Time `json:"pinned"`
	Config    []byte    `json:"config,omitempty"` // OCI image config, JSON
	Layers    []Layer   `json:"layers,omitempty"`
}

// Layer is a layer's state in the cache.
type Layer struct {
	Digest    string `json:"digest"`
	DiffID    string `json:"diff_id,omitempty"`
	MediaType string `json:"media_type"`
	Size      int64  `json:"size"`            // of the blob, bytes
	Mode      string `json:"mode"`            // lazy-toc, lazy-index, streaming, full
	Reason    string `json:"reason"`          // why it has that mode
	Have      int64  `json:"have"`            // blob bytes that are local
	Fetched   int64  `json:"fetched"`         // bytes asked of the registry since the daemon started
	Requests  int64  `json:"requests"`        // sent to the registry for this blob since the daemon started
	Error     string `json:"error,omitempty"` // why it cannot be read
}

// Usage is what a mount or sandbox has used so far.
type Usage struct {
	BytesFetched int64   `json:"bytes_fetched"` // from registries, for its layers, since it was asked for
	BytesTouched int64   `json:"bytes_touched"` // of the layers' blobs, that hold what its first users have read
	ImageBytes   int64   `json:"image_bytes"`
	Layers       []Layer `json:"layers,omitempty"`
	Stalls       []Stall `json:"stalls,omitempty"` // longest first
}

// Profiles are the start-up profiles of one image.
type Profiles struct {
	Data []byte `json:"data,omitempty"` // packed; empty when there are none
}

// Stall is the time that requests waited for one file.
type Stall struct {
	Path  string  `json:"path"`
	MS    float64 `json:"ms"`
	Count int64   `json:"count"`
}

// Mount is an image mounted on the host.
type Mount struct {
	Dir       string    `json:"dir"`
	Reference string    `json:"reference"`
	Digest    string    `json:"digest"`
	Upper     string    `json:"upper,omitempty"`
	Since     time.Time `json:"since"`
	Error     string    `json:"error,omitempty"` // why it answers EIO
}

// File is a name inside an image, as stat has it.
type File struct {
	Path  string    `json:"path"`
	Mode  uint32    `json:"mode"` // st_mode
	Nlink uint32    `json:"nlink"`
	UID   uint32    `json:"uid"`
	GID   uint32    `json:"gid"`
	Rdev  uint32    `json:"rdev,omitempty"`
	Size  int64     `json:"size"`
	Mtime time.Time `json:"mtime"`
	Inode uint64    `json:"inode"`
	Link  string    `json:"link,omitempty"`
	// Raw and RawLink are Path and Link where those are not UTF-8, which JSON cannot hold.
	Raw     []byte            `json:"raw,omitempty"`
	RawLink []byte            `json:"raw_link,omitempty"`
	Xattrs  map[string][]byte `json:"xattrs,omitempty"`
}

// Span is something that the daemon did for a traced reader. Times are CLOCK_MONOTONIC, ns; those of a part that there was not are 0.
type Span struct {
	Kind      string `json:"kind"`
	Start     int64  `json:"start"`                // of SpanChunk: when the file's chunk was looked for
	Asked     int64  `json:"asked,omitempty"`      // of SpanChunk: when the cache was asked for it
	FillStart int64  `json:"fill_start,omitempty"` // of SpanChunk: when the cache, which had it not, asked the layer for it
	FillEnd   int64  `json:"fill_end,omitempty"`   // and had it, not yet verified
	End       int64  `json:"end"`
	File      uint64 `json:"file,omitempty"` // of SpanChunk: the node that it was wanted for
	Path      string `json:"path,omitempty"`
	Offset    int64  `json:"offset"`          // in the file, or in the blob
	Size      int64  `json:"size"`            // of the chunk, or what was read, bytes
	Layer     string `json:"layer,omitempty"` // digest of the blob
	Chunk     string `json:"chunk,omitempty"` // sha256, hex
	Class     string `json:"class"`           // on demand, predicted, ...
}

// Kinds of Spans.
const (
	SpanChunk = "chunk" // a chunk was read, from the cache or else from its layer
	SpanBlob  = "blob"  // bytes of a layer's blob were read
	SpanQueue = "queue" // a range of a blob waited for its turn to be asked for
)

// PagesRequest tells what a start on a mount has used, as the kernel has seen it: file after file, as they were first used.
type PagesRequest struct {
	Dir   string      `json:"dir"`
	Files []FilePages `json:"files"`
}

// FilePages are pages of 4 KiB of one file, by number.
type FilePages struct {
	Node  uint64   `json:"node"`
	Pages []uint64 `json:"pages"`
}

// PathsRequest asks for the paths of nodes of a mount.
type PathsRequest struct {
	Dir   string   `json:"dir"`
	Nodes []uint64 `json:"nodes"`
}

// Status is what the daemon says of itself.
type Status struct {
	PID       int      `json:"pid"`
	Version   string   `json:"version"`
	Home      string   `json:"home"`
	Uptime    float64  `json:"uptime_s"`
	Mounts    int      `json:"mounts"`
	Sandboxes int      `json:"sandboxes"`
	Fetching  []string `json:"fetching,omitempty"` // images being completed in the background
	Notes     []string `json:"notes,omitempty"`    // what it cleaned up when it started
}

// Wait is a registry that something is being waited for from and that is silent.
type Wait struct {
	Host    string  `json:"host"`
	Seconds float64 `json:"seconds"`         // since the last byte, or since it was asked
	Error   string  `json:"error,omitempty"` // how the last attempt failed
}

// Stats are the daemon's counters since it started.
type Stats struct {
	Hits         int64        `json:"hits"`   // chunk reads answered by the cache
	Misses       int64        `json:"misses"` // chunk reads that had to fetch
	BytesFetched int64        `json:"bytes_fetched"`
	Requests     int64        `json:"requests"`
	CacheBytes   int64        `json:"cache_bytes"`
	CacheChunks  int64        `json:"cache_chunks"`
	DedupRatio   float64      `json:"dedup_ratio"` // bytes offered to the cache over bytes stored
	Refetched    int64        `json:"refetched"`   // chunks found damaged on disk and fetched again
	RSS          int64        `json:"rss"`         // of the daemon, bytes
	Mounts       []MountStats `json:"mounts"`
	Sandboxes    []MountStats `json:"sandboxes"`
	Images       []Image      `json:"images"` // those open now
}

// MountStats are one mount's or sandbox's counters.
type MountStats struct {
	Name      string `json:"name"` // directory or sandbox id
	Reference string `json:"reference"`
	Usage     Usage  `json:"usage"`
}
