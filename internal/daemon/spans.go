package daemon

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/chunkcache"
	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/layer"
)

// spans records how chunks were read while somebody traces; it costs a load of a flag while nobody does. It is safe for concurrent use.
type spans struct {
	on atomic.Bool

	mu   sync.Mutex
	kept []api.Span
	stop chan struct{} // closed when the trace is to end; nil while there is none
}

// maxSpans bounds what is kept until the tracer takes it; what comes when it is full is not recorded.
const maxSpans = 1 << 17

// begin starts a trace, of which there is one at a time.
func (s *spans) begin() (stop <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		return nil, &api.Error{Code: api.CodeInUse, Message: "somebody else is tracing this daemon"}
	}
	s.stop = make(chan struct{})
	s.kept = nil
	s.on.Store(true)
	return s.stop, nil
}

// finish asks the trace to end.
func (s *spans) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		return
	}
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
}

func (s *spans) end() {
	s.on.Store(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop, s.kept = nil, nil
}

func (s *spans) add(sp api.Span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil && len(s.kept) < maxSpans {
		s.kept = append(s.kept, sp)
	}
}

func (s *spans) take() []api.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.kept
	s.kept = nil
	return out
}

// monotonic is the clock that the kernel's own events have, ns.
func monotonic() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// spansEvery is how often a tracer is sent what there is.
const spansEvery = 50 * time.Millisecond

// getTrace answers with a line of JSON per Span until the trace is stopped, or the caller hangs up.
func (d *daemon) getTrace(w http.ResponseWriter, r *http.Request) error {
	s := d.images.spans
	stop, err := s.begin()
	if err != nil {
		return err
	}
	defer s.end()
	w.Header().Set("Content-Type", "application/jsonl")
	lines, flush := json.NewEncoder(w), http.NewResponseController(w)
	tick := time.NewTicker(spansEvery)
	defer tick.Stop()
	for last := false; ; {
		for _, sp := range s.take() {
			if err := lines.Encode(sp); err != nil {
				return err
			}
		}
		if err := flush.Flush(); err != nil || last {
			return err
		}
		select {
		case <-tick.C:
		case <-stop:
			s.on.Store(false)
			last = true
		case <-r.Context().Done():
			return nil
		}
	}
}

// deleteTrace ends the trace: its stream ends once everything has been sent.
func (d *daemon) deleteTrace(w http.ResponseWriter, _ *http.Request) error {
	d.images.spans.finish()
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// maxPaths bounds a request for paths.
const maxPaths = 100_000

// postPaths tells the paths of nodes of a mount; "" where there is no such node in the image.
func (d *daemon) postPaths(w http.ResponseWriter, r *http.Request) error {
	var req api.PathsRequest
	if err := read(r, &req); err != nil {
		return err
	}
	for _, m := range d.mounts.list() {
		if m.Dir != req.Dir {
			continue
		}
		paths := make([]string, min(len(req.Nodes), maxPaths))
		for i := range paths {
			paths[i] = m.image.tree.Path(req.Nodes[i])
		}
		return write(w, paths)
	}
	return &api.Error{Code: api.CodeNotFound, Message: "nothing of ours is mounted on " + req.Dir}
}

// spanImage is what its layers and its cache know of the tree of one image.
type spanImage struct {
	spans *spans
	tree  atomic.Pointer[fs.Tree]

	mu    sync.Mutex
	asked map[layer.Digest]askedChunk // the last file that each chunk was wanted for
}

type askedChunk struct {
	file   fs.ID
	offset int64 // of the chunk in the file
	layer  string
	start  int64
}

// layer is l, number n of the image, whose chunks are noted while somebody traces.
func (i *spanImage) layer(n int, l *openLayer) fs.Layer { return &spanLayer{l, n, i} }

// cache is c, whose reads are recorded while somebody traces.
func (i *spanImage) cache(c *chunkcache.Cache) fs.Cache { return &spanCache{c, i} }

type spanLayer struct {
	*openLayer
	n     int
	image *spanImage
}

// Chunk notes which file's a chunk is.
func (l *spanLayer) Chunk(ctx context.Context, entry int, off int64) (layer.Chunk, error) {
	if !l.image.spans.on.Load() {
		return l.openLayer.Chunk(ctx, entry, off)
	}
	start := monotonic()
	c, err := l.openLayer.Chunk(ctx, entry, off)
	if err == nil {
		l.image.note(c.Digest, askedChunk{file: fs.ID(l.n+1)<<24 | fs.ID(entry), offset: c.Offset, layer: l.blob.Digest(), start: start})
	}
	return c, err
}

func (i *spanImage) note(d layer.Digest, a askedChunk) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.asked == nil || len(i.asked) >= maxSpans {
		i.asked = map[layer.Digest]askedChunk{}
	}
	i.asked[d] = a
}

func (i *spanImage) wanted(d layer.Digest) askedChunk {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[d]
}

type spanCache struct {
	*chunkcache.Cache
	image *spanImage
}

// ReadAt records how long a chunk took and what for. A fill may go on for others when it has returned.
func (c *spanCache) ReadAt(ctx context.Context, k [32]byte, size int64, p []byte, off int64, fill func(context.Context) ([]byte, error)) (int, error) {
	if !c.image.spans.on.Load() {
		return c.Cache.ReadAt(ctx, k, size, p, off, fill)
	}
	var begun, filled atomic.Int64
	asked := monotonic()
	n, err := c.Cache.ReadAt(ctx, k, size, p, off, func(ctx context.Context) ([]byte, error) {
		begun.Store(monotonic())
		defer func() { filled.Store(monotonic()) }()
		return fill(ctx)
	})
	end := monotonic()
	a := c.image.wanted(k)
	sp := api.Span{Kind: api.SpanChunk, Start: asked, Asked: asked, FillStart: begun.Load(), FillEnd: filled.Load(), End: end, File: a.file, Offset: a.offset, Size: size,
		Layer: a.layer, Chunk: hex.EncodeToString(k[:]), Class: priority.From(ctx).String()}
	if a.start > 0 && a.start < asked {
		sp.Start = a.start
	}
	if tree := c.image.tree.Load(); tree != nil && a.file != 0 {
		sp.Path = tree.Path(a.file)
	}
	c.image.spans.add(sp)
	return n, err
}

// granted records how long a range has waited for its turn.
func (s *spans) granted(digest string, off, n int64, class priority.Class, waited time.Duration) {
	if !s.on.Load() {
		return
	}
	now := monotonic()
	s.add(api.Span{Kind: api.SpanQueue, Start: now - int64(waited), End: now, Layer: digest, Offset: off, Size: n, Class: class.String()})
}

// spanBlob records the reads of a blob.
type spanBlob struct {
	layer.Blob
	digest string
	spans  *spans
}

// blob is b, whose reads are recorded while somebody traces.
func (s *spans) blob(b layer.Blob, digest string) layer.Blob { return &spanBlob{b, digest, s} }

func (b *spanBlob) record(ctx context.Context, start, off int64, n int) {
	b.spans.add(api.Span{Kind: api.SpanBlob, Start: start, End: monotonic(), Layer: b.digest, Offset: off, Size: int64(n), Class: priority.From(ctx).String()})
}

// ReadAt reads and records.
func (b *spanBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if !b.spans.on.Load() {
		return b.Blob.ReadAt(ctx, p, off)
	}
	start := monotonic()
	n, err := b.Blob.ReadAt(ctx, p, off)
	b.record(ctx, start, off, n)
	return n, err
}

// Open opens a stream whose reads are recorded.
func (b *spanBlob) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	start := monotonic()
	r, err := b.Blob.Open(ctx, off)
	if err != nil {
		return nil, err
	}
	if b.spans.on.Load() {
		b.record(ctx, start, off, 0)
	}
	return &spanStream{r, ctx, b, off}, nil
}

// Distrust hands on what layers say of bytes that were wrong.
func (b *spanBlob) Distrust(off, n int64) {
	if d, ok := b.Blob.(interface{ Distrust(off, n int64) }); ok {
		d.Distrust(off, n)
	}
}

type spanStream struct {
	io.ReadCloser
	ctx  context.Context
	blob *spanBlob
	off  int64
}

func (s *spanStream) Read(p []byte) (int, error) {
	if !s.blob.spans.on.Load() {
		n, err := s.ReadCloser.Read(p)
		s.off += int64(n)
		return n, err
	}
	start := monotonic()
	n, err := s.ReadCloser.Read(p)
	s.blob.record(s.ctx, start, s.off, n)
	s.off += int64(n)
	return n, err
}
