package layer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

const (
	inBlock    = 128 << 10     // bytes of the blob that travel together
	outBlock   = 128 << 10     // bytes of the tar that travel together
	blocks     = 8             // of each kind that wait at most
	chunkBytes = 3 * ChunkSize // of chunks of one layer that wait to be hashed and stored, unless Options say less
	storers    = 2             // goroutines that hash and store chunks
	openPause  = 200 * time.Millisecond
	maxPause   = 5 * time.Second
	openTries  = 8               // times that a blob is opened without getting a byte of it before that is trouble
	openTime   = 2 * time.Second // or so long: a blob that is so slow to fail is itself patient
)

// stream reads a layer once from end to end:
//
//	fetch -> inflate -> cut -> store (several)
//
// each on a goroutine of its own, with bounded queues between them. fetch computes the blob's digest, cut the diffID.
type stream struct {
	l     *Layer
	in    chan []byte   // of the blob, in order
	free  chan []byte   // buffers of in to be used again
	inErr error         // why in has ended; set before it is closed
	out   chan outbound // of the tar, in order
	back  chan []byte   // buffers of out to be used again
	work  chan job
	room  int64               // bytes of chunks that may wait
	mem   *semaphore.Weighted // of room
	enc   *zstd.Encoder
	big   sync.Pool // buffers of ChunkSize

	zero    sync.Once
	zeroSum Digest // guarded by zero

	unseen bool // entries have been added that nobody has been told of; of the goroutine that cuts

	from    *taken   // what an earlier stream left; nil when this one begins at the start
	journal *journal // of the goroutine that cuts; nil when none is kept
	marked  time.Time
	every   time.Duration // between two marks

	mu    sync.Mutex
	fresh []uint32   // guarded by mu; chunks that nobody had before
	snaps []snapshot // guarded by mu; of the blob's digest, in order
}

// outbound is a run of the tar and the spans that were found while it was inflated.
type outbound struct {
	data  []byte
	spans []span
	err   error // ends the stream; io.EOF when all is well
}

// job is a chunk to be hashed and stored.
type job struct {
	n    int
	data []byte
}

// runStream is the life of a streaming layer, from where takeUp says.
func (l *Layer) runStream(ctx context.Context, from *taken) {
	s := &stream{
		l: l, in: make(chan []byte, blocks), free: make(chan []byte, blocks+2), out: make(chan outbound, blocks),
		back: make(chan []byte, blocks+2), work: make(chan job, 4*storers), room: chunkBytes,
		from: from, marked: time.Now(), every: l.o.markEvery,
	}
	if s.every == 0 {
		s.every = markEvery
	}
	if l.o.Buffers > 0 {
		s.room = min(max(l.o.Buffers, ChunkSize), chunkBytes)
	}
	s.mem = semaphore.NewWeighted(s.room)
	if l.o.Dir != "" {
		s.journal = &journal{path: filepath.Join(l.o.Dir, partialName(l.id)), id: l.id, blob: l.size}
	}
	if from != nil {
		s.fresh = from.fresh
		s.journal.end, s.journal.saved = from.end, from.saved
	}
	s.big.New = func() any { b := make([]byte, ChunkSize); return &b }
	err := s.run(ctx)
	if err != nil {
		err = fmt.Errorf("layer %s: %w", l.d.Digest, err)
		s.quarantine(err)
	}
	l.mu.Lock()
	if err != nil {
		l.fail(err)
	} else {
		l.sealed, l.ready = true, nil
		l.mode, l.reason = Full, "streamed to its end and verified"
		l.wake()
	}
	l.mu.Unlock()
	if err == nil {
		l.keepIndex(Digest{})
		l.remember()
	}
	if s.journal != nil {
		if err == nil || errors.Is(err, ErrCorrupt) {
			s.journal.remove()
		}
		s.journal.close()
	}
	close(l.done)
}

// run streams the layer and checks what it was.
func (s *stream) run(ctx context.Context) error {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(64<<10))
	if err != nil {
		return err
	}
	defer enc.Close()
	s.enc = enc
	var diffID Digest
	var consumeErr error
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		diffID, consumeErr = s.consume(ctx)
	}()
	got, err := s.fetch(ctx, consumed)
	<-consumed
	switch {
	case err != nil:
		return err
	case got != s.l.id:
		return corrupt("its bytes have the digest %s", got)
	case consumeErr != nil:
		return consumeErr
	case !s.l.diffIDIs(diffID):
		return corrupt("its tar has the digest %s, the image says %s", diffID, s.l.d.DiffID)
	}
	s.l.mu.Lock()
	s.l.t.diffID = diffID
	s.l.mu.Unlock()
	return nil
}

// quarantine drops the chunks that only this layer vouched for, when it was no good. When it was cut short they stay: they
// are what their names say.
func (s *stream) quarantine(err error) {
	if !errors.Is(err, ErrCorrupt) || s.l.o.Chunks == nil {
		return
	}
	s.l.mu.RLock()
	var gone []Digest
	for _, n := range s.fresh {
		gone = append(gone, s.l.t.chunks[n].digest)
	}
	s.l.mu.RUnlock()
	for _, d := range gone {
		// One that cannot be deleted is still what its name says; nothing refers to it.
		_ = s.l.o.Chunks.Delete(d)
	}
}

// fetch reads the blob into s.in and returns its digest. A connection that breaks is opened again where it broke. When
// consumed is closed, because the blob makes no sense, the rest is only digested, so that the error can say whether the
// bytes or the image are wrong.
func (s *stream) fetch(ctx context.Context, consumed <-chan struct{}) (Digest, error) {
	h, off := sha256.New(), int64(0)
	if s.from != nil {
		h, off = s.from.blob, s.from.Off
	}
	pos, snapped := off, off
	if s.journal != nil {
		s.snap(h, pos)
	}
	err := s.read(ctx, off, func(b []byte) {
		h.Write(b)
		s.l.have.Add(int64(len(b)))
		if pos += int64(len(b)); s.journal != nil && pos-snapped >= snapEvery {
			s.snap(h, pos)
			snapped = pos
		}
		select {
		case s.in <- b:
		case <-consumed:
		}
	})
	s.inErr = err
	if err == nil {
		s.inErr = io.EOF
	}
	close(s.in)
	return Digest(h.Sum(nil)), err
}

// read calls emit with the blob's bytes from off on, in order, until its end.
func (s *stream) read(ctx context.Context, off int64, emit func([]byte)) error {
	last := time.Now() // of the last byte
	for try := 0; off < s.l.size || off == 0; {
		n, err := s.readFrom(ctx, off, func(b []byte) {
			if last = time.Now(); try > 0 {
				s.l.setTrouble(nil)
				try = 0
			}
			emit(b)
		})
		off += n
		if off > s.l.size {
			return corrupt("the registry sends more than its %d bytes", s.l.size)
		}
		if off == s.l.size && (err == nil || off > 0) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err = fmt.Errorf("read from byte %d: %w", off, err)
		if permanent(err) {
			return err
		}
		if try++; try > openTries || time.Since(last) > cmp.Or(s.l.o.openTime, openTime) {
			// Who waits is told; the stream goes on, for those who come when the registry is well again.
			s.l.setTrouble(fmt.Errorf("layer %s: %w", s.l.d.Digest, err))
			if s.l.hasty {
				return err
			}
		}
		if err := pause(ctx, min(openPause<<min(try-1, 10), maxPause)); err != nil {
			return err
		}
	}
	return nil
}

// readFrom is one connection of read: from off on, as far as it goes.
func (s *stream) readFrom(ctx context.Context, off int64, emit func([]byte)) (n int64, err error) {
	rc, err := s.l.blob.Open(ctx, off)
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	for {
		b := take(s.free, inBlock)
		k, err := rc.Read(b)
		n += int64(k)
		if off+n > s.l.size {
			return n, nil
		}
		if k > 0 {
			emit(b[:k])
		}
		if err == io.EOF && off+n < s.l.size {
			err = io.ErrUnexpectedEOF
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// take returns a buffer of n bytes, an old one if there is one.
func take(free chan []byte, n int) []byte {
	select {
	case b := <-free:
		return b[:n]
	default:
		return make([]byte, n)
	}
}

// give returns a buffer for take.
func give(free chan []byte, b []byte) {
	select {
	case free <- b[:cap(b)]:
	default:
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// consume turns s.in into entries and chunks and returns the diffID.
func (s *stream) consume(ctx context.Context) (diffID Digest, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		lowly(ctx)
		return s.inflate(ctx)
	})
	for range storers {
		g.Go(func() error {
			lowly(ctx)
			return s.store(ctx)
		})
	}
	g.Go(func() (err error) {
		lowly(ctx)
		defer close(s.work)
		diffID, err = s.cut(ctx)
		return err
	})
	return diffID, g.Wait()
}

// blobReader is s.in as a Reader.
type blobReader struct {
	ctx  context.Context
	s    *stream
	buf  []byte
	rest []byte
}

func (r *blobReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.buf != nil {
			give(r.s.free, r.buf)
			r.buf = nil
		}
		select {
		case b, ok := <-r.s.in:
			if !ok {
				return 0, r.s.inErr
			}
			r.buf, r.rest = b, b
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// inflate turns s.in into s.out. Its own errors travel in s.out, so that what came before them is still used.
func (s *stream) inflate(ctx context.Context) error {
	defer close(s.out)
	inf, err := s.inflater(ctx)
	if err != nil {
		return send(ctx, s.out, outbound{err: err})
	}
	if c, ok := inf.(io.Closer); ok {
		defer c.Close()
	}
	for {
		b := take(s.back, outBlock)
		n, err := inf.Read(b)
		// What is there already is sent along; a slow link is not waited for.
		for err == nil && n < len(b)/2 && len(s.in) > 0 {
			var k int
			k, err = inf.Read(b[n:])
			n += k
		}
		if serr := send(ctx, s.out, outbound{data: b[:n], spans: inf.spans(), err: err}); serr != nil || err != nil {
			return serr
		}
	}
}

func send[T any](ctx context.Context, c chan<- T, v T) error {
	select {
	case c <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// inflater looks at the first bytes of the blob and holds them against its media type.
func (s *stream) inflater(ctx context.Context) (inflater, error) {
	var r io.Reader = &blobReader{ctx: ctx, s: s}
	if s.from != nil {
		return s.inflateOn(r)
	}
	head := make([]byte, 512)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	head = head[:n]
	f, err := formOf(head, s.l.d.MediaType)
	if err != nil {
		return nil, err
	}
	s.l.mu.Lock()
	s.l.t.form = f
	s.l.mu.Unlock()
	r = io.MultiReader(strings.NewReader(string(head)), r)
	switch f {
	case formGzip:
		return newGzipReader(r, true), nil
	case formZstd:
		return newZstdReader(r, span{}, true)
	}
	return &tarReader{r: r}, nil
}

// tarLike says whether a tar may begin with head: its first header has the checksum that it says (tar(5)), or there is none.
func tarLike(head []byte) bool {
	if len(head) < 512 || zero(head) {
		return zero(head)
	}
	sum := int64(8 * ' ')
	for i, c := range head[:512] {
		if i < 148 || i >= 156 {
			sum += int64(c)
		}
	}
	said, err := strconv.ParseInt(strings.Trim(string(head[148:156]), " \x00"), 8, 64)
	return err == nil && said == sum
}

// formOf says what a blob is that begins with head, if it may be that as a mediaType.
func formOf(head []byte, mediaType string) (form, error) {
	is, name := formTar, "an uncompressed tar"
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		is, name = formGzip, "gzip"
	case len(head) >= 4 && head[0] == 0x28 && head[1] == 0xb5 && head[2] == 0x2f && head[3] == 0xfd,
		len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18:
		is, name = formZstd, "zstd"
	}
	want := is
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		want = formGzip
	case strings.HasSuffix(mediaType, "zstd"):
		want = formZstd
	case strings.HasSuffix(mediaType, "tar"):
		want = formTar
	}
	if is == formTar && !tarLike(head) {
		name = "neither gzip nor zstd nor a tar"
	}
	if want != is {
		return 0, corrupt("its media type is %q, its bytes are %s", mediaType, name)
	}
	return is, nil
}
