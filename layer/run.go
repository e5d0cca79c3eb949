package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// run is a piece of the blob to be read at once, and the chunks in it. It shares nothing with the table.
type run struct {
	form   form
	off    int64 // in the blob
	end    int64
	edge   int64      // where the span behind the last one begins, or the blob ends
	chunks []chunkRec // in the order of the table, none of them a hole or sparse
	nums   []int      // their numbers
	base   uint32     // number of spans[0]
	spans  []spanRec  // from where chunks begin; spans[0].off == off
	zwin   [][]byte   // their windows, packed
	sums   []Digest   // of the spans' bytes, where the index has them
}

// memRun is the longest run that is read into memory, bytes of the blob; a longer one is read as it is inflated.
const memRun = 16 << 20

// uend is where chunk c ends: in the tar, or in its part.
func (t *table) uend(c *chunkRec) int64 {
	if t.form.parts() {
		return c.inner + c.len()
	}
	return t.spans[c.span].uoff + c.inner + c.len()
}

// sane says whether chunk n and its span are there at all.
func (t *table) sane(n int) bool {
	return n >= 0 && n < len(t.chunks) && int(t.chunks[n].span) < len(t.spans) && t.chunks[n].inner >= 0
}

// reach is the blob range that has to be read for chunk n, and the number of the span after it.
func (t *table) reach(n int) (off, end int64, hi int) {
	c := &t.chunks[n]
	if t.form == formTar {
		return c.inner, c.inner + c.len(), 1
	}
	hi = int(c.span) + 1
	if !t.form.parts() {
		uend := t.uend(c)
		hi += sort.Search(len(t.spans)-hi, func(k int) bool { return t.spans[hi+k].uoff >= uend })
	}
	end = t.end
	if hi < len(t.spans) {
		next := t.spans[hi].off
		if t.form == formGzip {
			next += slack
		}
		end = min(end, next)
	}
	return t.spans[c.span].off, end, hi
}

// slack is how many bytes of the next span go with a span where that begins in the middle of a deflate stream. The first bits of the byte where a deflate block begins belong to
// the block before, and the decoder looks 10 bits beyond the end of a block when it is not the last (klauspost/compress,
// flate/inflate.go, readHuffman).
const slack = 3

// plan makes the run that holds chunks first to last. Chunks that pass by on the way belong to it. mu is held.
func (t *table) plan(first, last int) (*run, error) {
	if !t.sane(first) || !t.sane(last) || first > last {
		return nil, fmt.Errorf("chunk %d is not in the index", first)
	}
	r := &run{form: t.form, edge: t.end}
	var hi int
	r.off, _, _ = t.reach(first)
	_, r.end, hi = t.reach(last)
	if r.off < 0 || r.off >= r.end || r.end > t.end {
		return nil, fmt.Errorf("chunk %d is outside of the blob", first)
	}
	lo := t.chunks[first].span
	if t.form != formTar {
		r.base = lo
		if hi < len(t.spans) {
			r.edge = t.spans[hi].off
		}
		r.spans = append(r.spans, t.spans[lo:hi]...)
		for _, s := range r.spans {
			var z []byte
			if uint64(s.window)+uint64(s.windowLen) <= uint64(len(t.windows)) {
				z = bytes.Clone(t.windows[s.window : uint64(s.window)+uint64(s.windowLen)])
			}
			r.zwin = append(r.zwin, z)
		}
		if len(t.sums) > 0 {
			r.sums = append(r.sums, t.sums[lo:hi]...)
		}
		first = sort.Search(len(t.chunks), func(k int) bool { return t.chunks[k].span >= lo })
		last = t.passing(last, hi)
	}
	for n := first; n <= last; n++ {
		if c := t.chunks[n]; t.sane(n) && c.size&chunkFlags == 0 {
			r.chunks = append(r.chunks, c)
			r.nums = append(r.nums, n)
		}
	}
	return r, nil
}

// passing is the last chunk that ends before span hi begins, at least last.
func (t *table) passing(last, hi int) int {
	for n := last + 1; n < len(t.chunks) && t.sane(n) && int(t.chunks[n].span) < hi; n++ {
		if !t.form.parts() && hi < len(t.spans) && t.uend(&t.chunks[n]) > t.spans[hi].uoff {
			break
		}
		last = n
	}
	return last
}

// each reads the run and calls emit with its chunks in order, for those that want is true for. Data is emit's only until it
// returns. An emit that returns io.EOF ends the reading early, without an error.
func (l *Layer) each(ctx context.Context, r *run, want func(num int, c *chunkRec) bool, emit func(num int, c *chunkRec, data []byte) error) error {
	src, err := l.openRun(ctx, r)
	if err != nil {
		return err
	}
	defer src.close()
	var data []byte
	for k := range r.chunks {
		c := &r.chunks[k]
		if !want(r.nums[k], c) {
			continue
		}
		if err := src.seek(c); err != nil {
			return err
		}
		if int64(cap(data)) < c.len() {
			data = make([]byte, c.len())
		}
		data = data[:c.len()]
		if _, err := io.ReadFull(src.r, data); err != nil {
			return src.explain(err)
		}
		src.pos += c.len()
		if err := emit(r.nums[k], c, data); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
	return nil
}

// runReader reads a run's chunks in order.
type runReader struct {
	l    *Layer
	ctx  context.Context
	run  *run
	mem  []byte        // the run's bytes, or
	body io.ReadCloser // the blob from body0 on
	r    io.Reader     // the inflater, one of the two below or the blob itself, at
	pos  int64         // tar offset, or offset in the part
	span int           // where r was begun, as a number of run.spans; -1: nowhere yet
	gzip *gzipReader   // used again and again, nil until needed
	zstd *zstdReader   // likewise
}

func (l *Layer) openRun(ctx context.Context, r *run) (*runReader, error) {
	src := &runReader{l: l, ctx: ctx, run: r, span: -1}
	if r.end-r.off > memRun {
		if r.sums != nil {
			return nil, refused("spans of %d bytes cannot be checked", r.end-r.off)
		}
		return src, nil
	}
	if src.mem = l.inSmall(r.off, r.end); src.mem != nil {
		return src, r.checkSpans(src.mem)
	}
	src.mem = make([]byte, r.end-r.off)
	if _, err := l.blob.ReadAt(ctx, src.mem, r.off); err != nil {
		return nil, fmt.Errorf("read blob [%d,+%d): %w", r.off, len(src.mem), err)
	}
	l.have.Add(int64(len(src.mem)))
	return src, r.checkSpans(src.mem)
}

// inSmall is the blob's [off, end) where the blob is small and in memory; else nil.
func (l *Layer) inSmall(off, end int64) []byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if off < 0 || off >= end || end > int64(len(l.small)) {
		return nil
	}
	return l.small[off:end]
}

// checkSpans holds mem, the run's bytes, against the digests of its spans. A span may or may not end with the byte that the
// next one begins in the middle of: versions of SOCI differ.
func (r *run) checkSpans(mem []byte) error {
	for k, sum := range r.sums {
		next := r.edge
		if k+1 < len(r.spans) {
			next = r.spans[k+1].off
		}
		from, to := r.spans[k].off-r.off, next-r.off
		ok := false
		for n := to; n <= to+1; n++ {
			ok = ok || n > from && n <= int64(len(mem)) && Digest(sha256.Sum256(mem[from:n])) == sum
		}
		if !ok {
			return corrupt("span at byte %d has other bytes", r.spans[k].off)
		}
	}
	return nil
}

func (s *runReader) close() {
	if s.zstd != nil {
		s.zstd.Close()
	}
	if s.body != nil {
		s.body.Close()
	}
}

// seek brings r to the start of c: it reads on where that is possible without going past a span, and else begins anew.
func (s *runReader) seek(c *chunkRec) error {
	r := s.run
	if r.form == formTar {
		return s.begin(0, spanRec{off: c.inner}, 0)
	}
	k := int(c.span - r.base)
	at, start := c.inner, int64(0)
	if !r.form.parts() {
		start = r.spans[k].uoff
		at += start
	}
	if s.span < 0 || at < s.pos || k != s.span && (r.form.parts() || s.pos < start) {
		if err := s.begin(k, r.spans[k], start); err != nil {
			return err
		}
	}
	n, err := io.CopyN(io.Discard, s.r, at-s.pos)
	s.pos += n
	return s.explain(err)
}

// begin makes r inflate from span k on.
func (s *runReader) begin(k int, rec spanRec, start int64) error {
	raw, err := s.raw(rec.off)
	if err != nil {
		return err
	}
	sp := span{off: rec.off, uoff: start, bit: rec.bit}
	switch s.run.form {
	case formTar:
		s.r = raw
	case formGzip, formGzipParts:
		if rec.windowLen > 0 {
			if sp.window, err = s.l.spans.unpack(s.run.zwin[k]); err != nil {
				return corrupt("index: window of span %d: %w", k, err)
			}
		}
		if s.gzip == nil {
			s.gzip = newGzipReader(nil, false)
		}
		s.gzip.resumeAt(raw, sp)
		s.r = s.gzip
	default:
		if s.zstd == nil {
			if s.zstd, err = newZstdReader(raw, sp, false); err != nil {
				return err
			}
		} else {
			s.zstd.resumeAt(raw, sp)
		}
		s.r = s.zstd
	}
	s.span, s.pos = k, start
	return nil
}

// raw is the blob from off on.
func (s *runReader) raw(off int64) (io.Reader, error) {
	if s.mem != nil {
		return bytes.NewReader(s.mem[off-s.run.off:]), nil
	}
	if s.body != nil {
		s.body.Close()
	}
	body, err := s.l.blob.Open(s.ctx, off)
	if err != nil {
		return nil, fmt.Errorf("read blob from %d: %w", off, err)
	}
	s.body = body
	return &counted{io.LimitReader(body, s.run.end-off), s.l}, nil
}

// counted adds what is read to the layer's progress.
type counted struct {
	r io.Reader
	l *Layer
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.l.have.Add(int64(n))
	return n, err
}

// explain says what an early end means.
func (s *runReader) explain(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("blob [%d,%d) ends inside of a chunk", s.run.off, s.run.end)
	}
	return err
}

// check says whether data is c, as far as that is known.
func (c *chunkRec) check(data []byte) error {
	if c.digest != (Digest{}) && Digest(sha256.Sum256(data)) != c.digest {
		return corrupt("chunk %s has other bytes", c.digest)
	}
	return nil
}

// windows unpacks inflate windows. The zero value is ready.
type windows struct {
	once sync.Once
	dec  *zstd.Decoder
	err  error
}

func (w *windows) unpack(z []byte) ([]byte, error) {
	w.once.Do(func() {
		w.dec, w.err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(64<<10))
	})
	if w.err != nil {
		return nil, w.err
	}
	return w.dec.DecodeAll(z, nil)
}

func (w *windows) close() {
	w.once.Do(func() { w.err = ErrClosed })
	if w.dec != nil {
		w.dec.Close()
	}
}

// regular says whether an st_mode is a regular file's.
func regular(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFREG }

// zero says whether b is nothing but zeros.
func zero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
