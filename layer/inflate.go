package layer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
)

// spanLen is how far spans are apart at least, bytes of the tar. A random read inflates half of it for nothing; a span costs
// about 10 KB of the index.
const spanLen = 512 << 10

// inflater reads a layer's tar out of its blob, in order. Read ends with io.EOF only where the blob ends as its form
// says, and with an ErrCorrupt where it does not.
type inflater interface {
	io.Reader
	// spans returns the places found since the last call from which inflating could begin. They may lie up to a deflate
	// window beyond what has been read.
	spans() []span
}

// span is a place to begin at.
type span struct {
	off    int64  // in the blob
	uoff   int64  // in the tar
	bit    uint8  // of the byte at off
	window []byte // nil at the start of a member or frame
}

// source counts the bytes of a blob that pass. Reading less than what was asked for is fine.
type source struct {
	r io.Reader
	n int64
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	return n, err
}

// gzipReader inflates any number of gzip members (RFC 1952) and collects checkpoints on the way.
type gzipReader struct {
	src    *source
	br     *bufio.Reader
	fl     io.ReadCloser // of the current member; nil between members
	idle   io.ReadCloser // of a former member, to be used again
	any    bool          // a member has been seen
	resume bool          // the first member is read from its middle: its checksum cannot be checked
	index  bool          // spans are wanted
	begin  int64         // blob offset of the current member's deflate data
	ubegin int64         // tar offset where the current member begins
	uoff   int64         // tar offset of what Read returns next
	last   int64         // tar offset of the newest span
	drift  int64         // see checkpoint
	crc    uint32
	found  []span
}

var _ inflater = (*gzipReader)(nil)

// newGzipReader reads the gzip file r from its start.
func newGzipReader(r io.Reader, index bool) *gzipReader {
	g := &gzipReader{src: &source{r: r}, index: index, last: -spanLen}
	g.br = bufio.NewReaderSize(g.src, 64<<10)
	return g
}

// resumeGzip reads what follows s; r begins at s.off.
func resumeGzip(r io.Reader, s span) *gzipReader {
	g := newGzipReader(nil, false)
	g.resumeAt(r, s)
	return g
}

// resumeAt makes g read what follows s; r begins at s.off.
func (g *gzipReader) resumeAt(r io.Reader, s span) {
	g.src.r, g.src.n = r, s.off
	g.br.Reset(g.src)
	if g.fl != nil {
		g.idle = g.fl
	}
	g.fl, g.any, g.resume, g.uoff = nil, false, false, s.uoff
	if s.window != nil || s.bit != 0 {
		g.any, g.resume = true, true
		g.begin, g.ubegin, g.drift = 0, 0, 0 // the offsets of checkpoints go on from those of s
		opts := []flate.ReaderOpt{flate.WithResumeFrom(flate.InflateCheckpoint{
			CompressedOffset: s.off, UncompressedOffset: s.uoff, BitOffset: s.bit, Window: s.window,
		})}
		if g.index {
			opts = append(opts, flate.WithEobCallback(g.checkpoint))
		}
		g.fl = flate.NewReaderOpts(g.br, opts...)
	}
}

// continueGzip is resumeGzip for who wants the spans behind s.
func continueGzip(r io.Reader, s span) *gzipReader {
	g := newGzipReader(nil, false)
	g.index, g.last = true, s.uoff
	g.resumeAt(r, s)
	return g
}

func (g *gzipReader) spans() []span {
	f := g.found
	g.found = nil
	return f
}

func (g *gzipReader) Read(p []byte) (int, error) {
	for {
		if g.fl == nil {
			if err := g.member(); err != nil {
				return 0, err
			}
		}
		n, err := g.fl.Read(p)
		g.uoff += int64(n)
		if !g.resume {
			g.crc = crc32.Update(g.crc, crc32.IEEETable, p[:n])
		}
		if err == io.EOF {
			g.idle, g.fl, err = g.fl, nil, g.trailer()
		}
		if n > 0 || err != nil {
			return n, g.explain(err)
		}
	}
}

// explain tells a blob that is wrong from one that could not be read.
func (g *gzipReader) explain(err error) error {
	var bad flate.CorruptInputError
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return corrupt("gzip data ends early, at byte %d", g.pos())
	case errors.As(err, &bad):
		return corrupt("gzip data is damaged near byte %d", g.pos())
	}
	return err
}

// pos is the blob offset of the next byte that nobody has consumed.
func (g *gzipReader) pos() int64 { return g.src.n - int64(g.br.Buffered()) }

// member reads a member's header and begins its data. It returns io.EOF at the end of the blob.
func (g *gzipReader) member() error {
	start := g.pos()
	head, err := g.br.Peek(10)
	if g.any && (len(head) < 2 || head[0] != 0x1f || head[1] != 0x8b) {
		return g.padding()
	}
	if err != nil {
		if err == io.EOF {
			return corrupt("gzip data ends early, at byte %d", start)
		}
		return err
	}
	if head[0] != 0x1f || head[1] != 0x8b || head[2] != 8 {
		return corrupt("no gzip member at byte %d", start)
	}
	flags := head[3]
	if _, err := g.br.Discard(10); err != nil {
		return err
	}
	if err := g.skipFields(flags); err != nil {
		return g.explain(err)
	}
	if g.index && g.uoff-g.last >= spanLen {
		g.found = append(g.found, span{off: start, uoff: g.uoff})
		g.last = g.uoff
	}
	g.any, g.resume = true, false
	g.begin, g.ubegin, g.drift, g.crc = g.pos(), g.uoff, 0, 0
	if g.index {
		g.fl = flate.NewReaderOpts(g.br, flate.WithEobCallback(g.checkpoint)) // a callback does not survive a Reset
		return nil
	}
	if g.idle == nil {
		g.idle = flate.NewReader(nil)
	}
	g.fl = g.idle
	return g.fl.(flate.Resetter).Reset(g.br, nil)
}

// skipFields passes over the optional fields of a member's header: RFC 1952, 2.3.
func (g *gzipReader) skipFields(flags byte) error {
	if flags&4 != 0 { // FEXTRA
		var n [2]byte
		if _, err := io.ReadFull(g.br, n[:]); err != nil {
			return noEOF(err)
		}
		if _, err := g.br.Discard(int(binary.LittleEndian.Uint16(n[:]))); err != nil {
			return noEOF(err)
		}
	}
	for _, bit := range []byte{8, 16} { // FNAME, FCOMMENT: up to a NUL
		for flags&bit != 0 {
			c, err := g.br.ReadByte()
			if err != nil {
				return noEOF(err)
			}
			if c == 0 {
				break
			}
		}
	}
	if flags&2 != 0 { // FHCRC
		if _, err := g.br.Discard(2); err != nil {
			return noEOF(err)
		}
	}
	return nil
}

// padding accepts zeros up to the end of the blob, as gzip does.
func (g *gzipReader) padding() error {
	for {
		c, err := g.br.ReadByte()
		if err != nil {
			return err // io.EOF is the end that is hoped for
		}
		if c != 0 {
			return corrupt("garbage after the gzip data, at byte %d", g.pos()-1)
		}
	}
}

// trailer checks a member's length and checksum.
func (g *gzipReader) trailer() error {
	var b [8]byte
	if _, err := io.ReadFull(g.br, b[:]); err != nil {
		return noEOF(err)
	}
	if g.resume {
		return nil
	}
	if binary.LittleEndian.Uint32(b[:]) != g.crc || binary.LittleEndian.Uint32(b[4:]) != uint32(g.uoff-g.ubegin) {
		return corrupt("gzip checksum is wrong near byte %d", g.pos())
	}
	return nil
}

// checkpoint takes note of the end of a deflate block. It is called from within fl.Read.
//
// The offset that klauspost/compress v1.20 reports runs ahead: a stored block counts the bytes that had been buffered
// before it twice (flate/inflate.go, dataBlock). At the end of a stored block no bits are buffered, so that there the
// offset must be what we have handed out; the difference is the drift so far, to be taken off every later offset.
func (g *gzipReader) checkpoint(c flate.InflateCheckpoint) {
	consumed := g.pos() - g.begin
	if c.BitOffset == 0 {
		g.drift = max(g.drift, c.CompressedOffset-consumed)
	}
	off, uoff := c.CompressedOffset-g.drift, g.ubegin+c.UncompressedOffset
	if c.Final || uoff-g.last < spanLen {
		return
	}
	// The bit buffer holds 32 bits: an offset that cannot be is left out, which costs a longer span and nothing else.
	if off > consumed || off < consumed-4 || len(c.Window) == 0 {
		return
	}
	g.found = append(g.found, span{off: g.begin + off, uoff: uoff, bit: c.BitOffset, window: append([]byte{}, c.Window...)})
	g.last = uoff
}

// noEOF is err, but an early end where err is an end.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// tarReader is the inflater of a blob that is not compressed.
type tarReader struct {
	r     io.Reader
	begun bool
}

var _ inflater = (*tarReader)(nil)

func (t *tarReader) Read(p []byte) (int, error) { return t.r.Read(p) }

func (t *tarReader) spans() []span {
	if t.begun {
		return nil
	}
	t.begun = true
	return []span{{}}
}
