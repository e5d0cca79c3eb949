package layer

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
)

// tarSource is s.out as a Reader. It knows the tar offset, computes the diffID and takes the spans into the table.
type tarSource struct {
	ctx  context.Context
	s    *stream
	hash hash.Hash // of the tar up to next, and beyond that when the stream was taken up
	next int64     // tar offset of what s.out brings next
	done int64     // tar offset up to which hash had been computed when the stream was taken up
	pos  int64     // tar offset of what Read returns next
	max  int64
	buf  []byte
	rest []byte
	err  error
}

func (r *tarSource) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.buf != nil {
			give(r.s.back, r.buf)
			r.buf = nil
		}
		if r.err != nil {
			return 0, r.err
		}
		r.s.tell()
		select {
		case o, ok := <-r.s.out:
			if !ok {
				o.err = io.ErrUnexpectedEOF
			}
			r.buf, r.rest, r.err = o.data, o.data, o.err
			r.digest(o.data)
			r.s.addSpans(o.spans)
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.pos += int64(n)
	if r.pos > r.max {
		return n, refused("it unpacks to more than %d bytes", r.max)
	}
	return n, nil
}

// digest takes the next bytes of the tar into its hash.
func (r *tarSource) digest(b []byte) {
	known := min(max(r.done-r.next, 0), int64(len(b)))
	r.next += int64(len(b))
	r.hash.Write(b[known:])
}

// tell wakes those who wait for entries, once for all that a block of the tar has brought.
func (s *stream) tell() {
	if !s.unseen {
		return
	}
	s.unseen = false
	s.l.mu.Lock()
	s.l.entered.wake()
	s.l.mu.Unlock()
}

// addSpans takes spans into the table.
func (s *stream) addSpans(spans []span) {
	for _, sp := range spans {
		var z []byte
		if sp.window != nil {
			z = s.enc.EncodeAll(sp.window, nil)
		}
		s.l.mu.Lock()
		t := s.l.t
		if len(t.windows)+len(z) <= MaxText {
			t.spans = append(t.spans, spanRec{
				off: sp.off, uoff: sp.uoff, bit: sp.bit, window: uint32(len(t.windows)), windowLen: uint32(len(z)),
			})
			t.windows = append(t.windows, z...)
		}
		s.l.mu.Unlock()
	}
}

// cut takes the tar apart.
func (s *stream) cut(ctx context.Context) (diffID Digest, err error) {
	src := &tarSource{ctx: ctx, s: s, hash: sha256.New(), max: maxExpanded(s.l.size)}
	b := builderOf(s.l.t)
	var holes int64 // bytes of sparse files that may not be in the tar
	if s.from != nil {
		holes = s.from.Holes
		if err := s.goOn(ctx, src); err != nil {
			return diffID, tarError(err, src.pos)
		}
	}
	tr := tar.NewReader(src)
	for {
		start := (src.pos + 511) &^ 511
		if err := s.mark(ctx, src, start, 0, holes); err != nil {
			return diffID, err
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return diffID, tarError(err, src.pos)
		}
		sparseFile := sparse(h)
		if sparseFile {
			if holes += h.Size; holes > src.max {
				return diffID, refused("its sparse files are longer than %d bytes", src.max)
			}
		}
		file, err := s.addEntry(b, h)
		if err != nil {
			return diffID, err
		}
		if file {
			err = s.cutFile(ctx, tr, src, piece{size: h.Size, sparse: sparseFile, start: start, holes: holes})
		} else {
			_, err = io.Copy(io.Discard, tr)
		}
		if err != nil {
			return diffID, tarError(err, src.pos)
		}
	}
	// What follows the end of the archive counts for the diffID as well.
	if _, err := io.Copy(io.Discard, src); err != nil {
		return diffID, tarError(err, src.pos)
	}
	s.l.mu.Lock()
	s.l.t.tar = src.pos
	s.l.mu.Unlock()
	return Digest(src.hash.Sum(nil)), nil
}

// tarError tells a tar that is wrong from one that could not be read.
func tarError(err error, pos int64) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("tar is damaged near its byte %d: %w", pos, err)
	}
	return err
}

// addEntry makes the entry of h known. file says that its data follows.
func (s *stream) addEntry(b *builder, h *tar.Header) (file bool, err error) {
	e, ok, err := headerEntry(h)
	if err != nil || !ok {
		return false, err
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	n, ok, err := b.add(e)
	s.unseen = true
	if err != nil || !ok {
		return false, err
	}
	r := &b.t.entries[n]
	return r.kind == Plain && r.size > 0 && regular(r.mode), nil
}

// goOn brings src to where an earlier stream had got to and cuts what was left of the file there.
func (s *stream) goOn(ctx context.Context, src *tarSource) error {
	m := s.from
	src.hash, src.done = m.tar, m.Hashed
	src.pos = m.begin(s.l.t).uoff
	src.next = src.pos
	if _, err := io.CopyN(io.Discard, src, m.Pos-src.pos); err != nil {
		return noEOF(err)
	}
	if m.Left == 0 {
		return nil
	}
	size := s.l.t.entries[len(s.l.t.entries)-1].size
	if err := s.cutFile(ctx, src, src, piece{off: size - m.Left, size: size, holes: m.Holes}); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, src, -size&511)
	return noEOF(err)
}

// piece is a file to be cut from off on. start is the tar offset of its header.
type piece struct {
	off, size, start int64
	sparse           bool
	holes            int64 // see mark
}

// cutFile cuts a file, whose bytes r reads out of src, into chunks.
func (s *stream) cutFile(ctx context.Context, r io.Reader, src *tarSource, f piece) error {
	for off := f.off; off < f.size; off += ChunkSize {
		if off > f.off && !f.sparse {
			if err := s.mark(ctx, src, src.pos, f.size-off, f.holes); err != nil {
				return err
			}
		}
		n := min(ChunkSize, f.size-off)
		if !s.mem.TryAcquire(n) {
			s.tell()
			if err := s.mem.Acquire(ctx, n); err != nil {
				return context.Cause(ctx)
			}
		}
		at := src.pos
		data := s.buffer(int(n))
		if _, err := io.ReadFull(r, data); err != nil {
			return noEOF(err)
		}
		c := chunkRec{offset: off, size: uint32(n)}
		if f.sparse {
			at = f.start
			if c.size |= chunkSparse; zero(data) {
				c.size |= chunkHole
			}
		}
		num, err := s.addChunk(c, at)
		if err != nil {
			return err
		}
		if err := send(ctx, s.work, job{n: num, data: data}); err != nil {
			return err
		}
	}
	return nil
}

// addChunk appends c, found at tar offset at, to the newest entry.
func (s *stream) addChunk(c chunkRec, at int64) (int, error) {
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.t
	if len(t.chunks) >= MaxChunks {
		return 0, refused("more than %d chunks", MaxChunks)
	}
	if len(t.spans) == 0 {
		return 0, corrupt("data without a place to begin at")
	}
	c.span = t.spanAt(at)
	c.inner = at - t.spans[c.span].uoff
	t.chunks = append(t.chunks, c)
	t.entries[len(t.entries)-1].chunks++
	l.ready = append(l.ready, false)
	return len(t.chunks) - 1, nil
}
