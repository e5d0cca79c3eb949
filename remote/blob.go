package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// Blob is a layer's bytes, read from its registry as they are asked for. It is safe for concurrent use. Reads are of
// the priority class their context carries.
type Blob struct {
	client *Client
	repo   name.Repository
	access Access
	digest string
	size   int64
	count  counter

	mu      sync.Mutex // guards what follows, and the flights' fields that say so
	up      *upstream  // made by the first read
	flights []*flight  // under way or read ahead, by offset, none overlapping another
	spool   *spool     // not nil once the registry turned out to have no Range support
	runs    []run      // of reads, the one longest unused first
	locs    map[*source]*location
	asking  map[*source]chan struct{} // closed when who asks for a location has its answer
}

// location is where a registry redirected to for a blob.
type location struct {
	url     *url.URL
	expires time.Time // zero = not known
}

// Blob returns a layer of img to read. It does no I/O and asks for no credentials until the first read. Its bytes are not verified here, except
// where the whole blob has to be streamed: whoever knows the digest of a range does that.
func (c *Client) Blob(img *Image, l Layer, a Access) *Blob {
	b := &Blob{client: c, access: a, digest: l.Digest, size: l.Size, locs: map[*source]*location{}, asking: map[*source]chan struct{}{}}
	b.count.parent = &c.stats
	if r, err := parseReference(img.Reference); err == nil { // it came from parseReference; if not, the first read says so
		b.repo = r.Context()
	}
	return b
}

// Size is the blob's length in bytes, as its manifest says.
func (b *Blob) Size() int64 { return b.size }

// Digest is the blob's digest, as its manifest says.
func (b *Blob) Digest() string { return b.digest }

// Stats counts what has been fetched of this blob.
func (b *Blob) Stats() Stats { return b.count.stats() }

// ReadAt fills p from offset off. Like io.ReaderAt it is never short without an error, which at the blob's end is io.EOF.
// It returns as soon as ctx is done, and what was being fetched for it alone is stopped.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, b.error(ctx, fmt.Errorf("negative offset %d", off))
	}
	short := error(nil)
	if left := max(b.size-off, 0); int64(len(p)) > left {
		p, short = p[:left], io.EOF
	}
	if len(p) == 0 {
		return 0, short
	}
	c := b.cursor(ctx, off, off+int64(len(p)), readWindow)
	defer c.close()
	if c.plan(); c.class == priority.OnDemand && c.err == nil {
		b.ahead(off, off+int64(len(p)))
	}
	n := 0
	for n < len(p) {
		m, err := c.read(ctx, p[n:])
		n += m
		if err != nil {
			return n, b.error(ctx, err)
		}
	}
	return n, short
}

// Open reads the blob in order from offset off to its end, with several ranges on their way at a time. Cancelling ctx
// ends the stream. The caller closes it.
func (b *Blob) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	if off < 0 || off > b.size {
		return nil, b.error(ctx, fmt.Errorf("offset %d is not within its %d bytes", off, b.size))
	}
	if err := b.connect(); err != nil {
		return nil, b.error(ctx, err)
	}
	b.client.mu.Lock()
	b.client.streams++
	b.client.mu.Unlock()
	return &stream{ctx: ctx, cursor: b.cursor(ctx, off, b.size, b.client.streamWindow)}, nil
}

// readWindow is how much of one big ReadAt is on its way at a time, bytes.
func readWindow() int64 { return 16 << 20 }

// streamWindow is how much one of the open streams may have on its way: its share of the buffers, but always enough for
// two ranges, so that one can arrive while the other is asked for.
func (c *Client) streamWindow() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(max(c.options.BufferBytes/int64(max(c.streams, 1)), 2*rangeSize), 8*rangeSize)
}

// stream is what Open returns.
type stream struct {
	ctx    context.Context
	cursor *cursor
	closed bool
}

func (s *stream) Read(p []byte) (int, error) {
	if s.closed {
		return 0, errors.New("read of a closed stream")
	}
	n, err := s.cursor.read(s.ctx, p)
	if err != nil && err != io.EOF {
		err = s.cursor.blob.error(s.ctx, err)
	}
	return n, err
}

func (s *stream) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	s.cursor.close()
	c := s.cursor.blob.client
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams--
	return nil
}

// Close stops what is under way and frees the spool, if there is one. Reads after it start again.
func (b *Blob) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range slices.Clone(b.flights) {
		b.forget(f)
	}
	if b.spool != nil {
		b.spool.close()
		b.spool = nil
	}
	return nil
}

// Distrust says that the bytes of [off, off+n) that were read are not what their digest names. What is buffered of them
// is dropped, where they came from goes last, and the location they came from is asked for afresh, so that
// reading them again is worth trying.
func (b *Blob) Distrust(off, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range slices.Clone(b.flights) {
		if f.off < off+n && off < f.off+f.n {
			b.forget(f)
		}
	}
	clear(b.locs)
	if b.spool != nil && !b.spool.complete() {
		b.spool.close()
		b.spool = nil
	}
	if b.up != nil {
		b.up.distrust()
	}
}

// connect finds the sources, once.
func (b *Blob) connect() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.up != nil {
		return nil
	}
	if b.repo.RepositoryStr() == "" {
		return fmt.Errorf("%w: the image has no valid reference", ErrInvalidReference)
	}
	up, err := b.client.upstream(b.repo, b.access)
	b.up = up
	return err
}

func (b *Blob) error(ctx context.Context, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	ref := displayHost(b.repo.RegistryStr()) + "/" + b.repo.RepositoryStr() + "@" + b.digest
	if ctx.Err() != nil {
		return fmt.Errorf("read %s: %w", ref, context.Cause(ctx))
	}
	return &Error{Op: "read", Ref: ref, Kind: kindOf(err), Cause: trimKind(err), Hint: hint(err, b.repo.RegistryStr())}
}

// cursor reads [off, end) in order, with a window of it planned ahead as flights. It is used by one goroutine.
type cursor struct {
	blob   *Blob
	class  priority.Class
	next   int64 // of which nothing is planned yet
	end    int64
	window func() int64
	ahead  int64 // bytes planned and not read
	parts  []part
	err    error
}

// part is a piece of a cursor's way: bytes of a flight or, without one, of the spool.
type part struct {
	flight   *flight
	off, end int64
}

func (b *Blob) cursor(ctx context.Context, off, end int64, window func() int64) *cursor {
	c := &cursor{blob: b, class: priority.From(ctx), next: off, end: end, window: window}
	c.err = b.connect()
	return c
}

// plan puts flights under way up to the window, but of bytes that have not arrived never many more than keep the link busy:
// ranges that are asked for one after the other, as bytes arrive, do not end together.
func (c *cursor) plan() {
	if c.err != nil {
		return
	}
	window := c.window()
	b := c.blob
	busy := b.up.sources[len(b.up.sources)-1].host.link.budget()
	b.mu.Lock()
	defer b.mu.Unlock()
	coming := int64(0)
	for _, p := range c.parts {
		coming += p.coming()
	}
	for c.next < c.end && (len(c.parts) == 0 || c.ahead < window && coming < busy) {
		p := b.part(c.next, min(c.end, c.next+rangeSize), c.class)
		c.parts = append(c.parts, p)
		c.ahead += p.end - p.off
		coming += p.coming()
		c.next = p.end
	}
}

// coming is how many bytes of p have not arrived. The caller holds Blob.mu.
func (p *part) coming() int64 {
	if p.flight == nil {
		return 0
	}
	return max(0, p.end-max(p.off, p.flight.off+p.flight.got))
}

// read fills some of p: what has arrived, at least one byte. At the end it answers io.EOF.
func (c *cursor) read(ctx context.Context, p []byte) (int, error) {
	for {
		if c.err != nil {
			return 0, c.err
		}
		c.plan()
		if len(c.parts) == 0 {
			return 0, io.EOF
		}
		head := &c.parts[0]
		n, err := c.readPart(ctx, head, p[:min(int64(len(p)), head.end-head.off)])
		head.off += int64(n)
		c.ahead -= int64(n)
		if head.off == head.end {
			c.blob.release(*head)
			c.parts = slices.Delete(c.parts, 0, 1)
		}
		switch {
		case n > 0 || err == nil:
			return n, nil
		case errors.Is(err, errNoRange) || errors.Is(err, errStale):
			// What is planned is not to be had this way any more: plan it again.
			c.next, c.ahead = head.off, 0
			c.close()
		default:
			c.err = err
		}
	}
}

func (c *cursor) readPart(ctx context.Context, head *part, p []byte) (int, error) {
	if head.flight == nil {
		c.blob.mu.Lock()
		s := c.blob.spool
		c.blob.mu.Unlock()
		if s == nil {
			return 0, errStale
		}
		return s.read(ctx, p, head.off)
	}
	return head.flight.read(ctx, p, head.off, head.end)
}

// close gives up what is planned.
func (c *cursor) close() {
	for _, p := range c.parts {
		c.blob.release(p)
	}
	c.parts = nil
}
