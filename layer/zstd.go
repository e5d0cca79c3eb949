package layer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

// zstdReader reads any number of zstd frames (RFC 8878), skippable ones included, and collects where they start. A
// frame cannot be entered in its middle, so that a blob of one single frame has one span.
type zstdReader struct {
	src   *source
	br    *bufio.Reader
	dec   *zstd.Decoder
	frame *zstdFrame // the current one; nil between frames
	any   bool
	index bool
	uoff  int64
	last  int64
	found []span
}

var _ inflater = (*zstdReader)(nil)

// newZstdReader reads what follows s, which is the start of a frame; r begins at s.off. It has to be closed.
func newZstdReader(r io.Reader, s span, index bool) (*zstdReader, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(MaxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	z := &zstdReader{src: new(source), dec: dec, index: index}
	z.br = bufio.NewReaderSize(z.src, 64<<10)
	z.resumeAt(r, s)
	return z, nil
}

// resumeAt makes z read what follows s, which is the start of a frame; r begins at s.off.
func (z *zstdReader) resumeAt(r io.Reader, s span) {
	z.src.r, z.src.n = r, s.off
	z.br.Reset(z.src)
	z.frame, z.any, z.uoff, z.last = nil, false, s.uoff, s.uoff-spanLen
}

// Close frees the decoder.
func (z *zstdReader) Close() error {
	z.dec.Close()
	return nil
}

func (z *zstdReader) spans() []span {
	f := z.found
	z.found = nil
	return f
}

func (z *zstdReader) pos() int64 { return z.src.n - int64(z.br.Buffered()) }

func (z *zstdReader) Read(p []byte) (int, error) {
	for {
		if z.frame == nil {
			if err := z.next(); err != nil {
				return 0, err
			}
		}
		n, err := z.dec.Read(p)
		z.uoff += int64(n)
		if err == io.EOF {
			if err = nil; !z.frame.done {
				err = corrupt("zstd frame ends early, at byte %d", z.pos())
			}
			z.frame = nil
		} else if err != nil {
			err = z.explain(err)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// explain tells a blob that is wrong from one that could not be read.
func (z *zstdReader) explain(err error) error {
	switch {
	case z.frame != nil && z.frame.err != nil && z.frame.err != io.EOF:
		return z.frame.err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return refused("its zstd window is larger than %d MiB", MaxWindow>>20)
	case errors.Is(err, zstd.ErrUnknownDictionary):
		return refused("its zstd data needs a dictionary, which an image cannot bring")
	}
	return corrupt("zstd data is damaged near byte %d: %w", z.pos(), err)
}

// next begins the next frame that has data. It returns io.EOF at the end of the blob.
func (z *zstdReader) next() error {
	for {
		start := z.pos()
		head, err := z.br.Peek(4)
		if err == io.EOF && len(head) == 0 && z.any {
			return io.EOF
		}
		if err != nil {
			return z.early(err)
		}
		magic := binary.LittleEndian.Uint32(head)
		if magic&^0xf == 0x184d2a50 { // a skippable frame
			if err := z.skip(); err != nil {
				return err
			}
			z.any = true
			continue
		}
		if magic != 0xfd2fb528 {
			return corrupt("no zstd frame at byte %d", start)
		}
		if z.index && z.uoff-z.last >= spanLen {
			z.found = append(z.found, span{off: start, uoff: z.uoff})
			z.last = z.uoff
		}
		z.any = true
		z.frame = &zstdFrame{br: z.br}
		if err := z.dec.Reset(z.frame); err != nil {
			return z.explain(err)
		}
		return nil
	}
}

func (z *zstdReader) skip() error {
	head, err := z.br.Peek(8)
	if err != nil {
		return z.early(err)
	}
	n := int64(binary.LittleEndian.Uint32(head[4:])) + 8
	if _, err := io.CopyN(io.Discard, z.br, n); err != nil {
		return z.early(err)
	}
	return nil
}

func (z *zstdReader) early(err error) error {
	if err == io.EOF {
		return corrupt("zstd data ends early, at byte %d", z.pos())
	}
	return err
}

// zstdFrame hands out exactly one frame, so that frame starts are known without asking the decoder. RFC 8878, 3.1.1.
type zstdFrame struct {
	br       *bufio.Reader
	begun    bool
	last     bool // the current block is the last one
	checksum bool // 4 bytes follow the last block
	done     bool // all of the frame has been handed out
	left     int  // bytes of the current piece
	err      error
}

func (f *zstdFrame) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	if f.left == 0 {
		if f.err = f.piece(); f.err != nil {
			return 0, f.err
		}
	}
	n, err := f.br.Read(p[:min(len(p), f.left)])
	f.left -= n
	if err != nil && n == 0 {
		f.err = noEOF(err)
		if err == io.EOF {
			f.err = corrupt("zstd frame ends early")
		}
	}
	return n, f.err
}

// piece finds the length of what comes next: the frame's header, a block, the checksum.
func (f *zstdFrame) piece() error {
	switch {
	case !f.begun:
		head, err := f.br.Peek(5)
		if err != nil {
			return f.early(err)
		}
		desc := head[4]
		single := desc >> 5 & 1
		f.checksum = desc&4 != 0
		f.left = 5 + int(1-single) + [...]int{0, 1, 2, 4}[desc&3] + [...]int{int(single), 2, 4, 8}[desc>>6]
		f.begun = true
	case !f.last:
		head, err := f.br.Peek(3)
		if err != nil {
			return f.early(err)
		}
		h := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
		f.last = h&1 != 0
		switch h >> 1 & 3 {
		case 1: // one byte, many times
			f.left = 4
		case 3:
			return corrupt("zstd block of a reserved type")
		default:
			f.left = 3 + h>>3
		}
	case f.checksum:
		f.checksum, f.left = false, 4
	default:
		f.done = true
		return io.EOF
	}
	return nil
}

func (f *zstdFrame) early(err error) error {
	if err == io.EOF {
		return corrupt("zstd frame ends early")
	}
	return err
}
