package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
	"math"

	"github.com/containerd/stargz-snapshotter/estargz"
	"golang.org/x/sys/unix"
)

// An eStargz's TOC is the last file of its tar, which every program that knows nothing of eStargz unpacks like any other.
// The TOC does not list itself; it is added to the entries, so that the layer looks the same to everybody. A builder that kept
// the original tar's end-of-archive marker has put the TOC behind it, where no program sees it.

const (
	tarBlock = 512
	// maxLast is how much of the blob is read to see what is in front of the TOC, bytes.
	maxLast = 8 << 20
	// maxHeaders is how much of the tar may lie there, bytes.
	maxHeaders = 64 << 20
)

// summer computes the digest of what is written to it, as a whole and by chunk.
type summer struct {
	whole, part hash.Hash
	n           int64 // bytes of part
	chunks      []chunkRec
}

func newSummer() *summer { return &summer{whole: sha256.New(), part: sha256.New()} }

func (s *summer) Write(p []byte) (int, error) {
	s.whole.Write(p)
	for rest := p; len(rest) > 0; {
		k := min(int64(len(rest)), ChunkSize-s.n)
		s.part.Write(rest[:k])
		if s.n += k; s.n == ChunkSize {
			s.cut()
		}
		rest = rest[k:]
	}
	return len(p), nil
}

func (s *summer) cut() {
	s.chunks = append(s.chunks, chunkRec{
		digest: Digest(s.part.Sum(nil)), offset: int64(len(s.chunks)) * ChunkSize, size: uint32(s.n),
		inner: tarBlock + int64(len(s.chunks))*ChunkSize,
	})
	s.part.Reset()
	s.n = 0
}

// finish returns the chunks of all that was written, placed behind a tar header.
func (s *summer) finish() []chunkRec {
	if s.n > 0 {
		s.cut()
	}
	return s.chunks
}

// addTOC adds the TOC's own file, whose chunks are given, if programs see it. The TOC takes packed bytes of the blob.
func (b *tocBuilder) addTOC(ctx context.Context, blob *tail, packed int64, chunks []chunkRec) error {
	ends, err := b.ends(ctx, blob)
	if err != nil || ends {
		return err
	}
	size := int64(0)
	for i := range chunks {
		size += chunks[i].len()
	}
	t := b.t
	if size == 0 || size > MaxInner || len(t.chunks)+len(chunks) > MaxChunks {
		return nil
	}
	// The header itself is not digested by anybody: these are the attributes that estargz gives it.
	n, ok, err := b.builder.add(Entry{Name: estargz.TOCTarName, Mode: unix.S_IFREG, Size: size})
	if err != nil || !ok {
		return err
	}
	t.spans = append(t.spans, spanRec{off: t.end})
	for _, c := range chunks {
		c.span = uint32(len(t.spans) - 1)
		t.chunks = append(t.chunks, c)
	}
	t.entries[n].chunks = uint32(len(chunks))
	t.end += packed
	return nil
}

// lastBlock is the last block of a tar of which b is the compressed end, if a whole gzip member is in that; else nil.
func lastBlock(b []byte) []byte {
	for i := len(b) - 1; i >= 0; i-- {
		if !bytes.HasPrefix(b[i:], []byte{0x1f, 0x8b, 8}) {
			continue
		}
		rest := bytes.NewReader(b[i:])
		r, err := gzip.NewReader(rest)
		if err != nil {
			continue
		}
		r.Multistream(false)
		if out, err := io.ReadAll(r); err == nil && rest.Len() == 0 && len(out) >= tarBlock && len(out)%tarBlock == 0 {
			return out[len(out)-tarBlock:]
		}
	}
	return nil
}

// toc is where the TOC begins that the table was made of: in front of it is what it lists.
func (t *table) toc() int64 {
	if last := len(t.entries) - 1; t.form == formGzipParts && last >= 0 && t.name(last) == estargz.TOCTarName {
		if n := int(t.entries[last].chunk); t.entries[last].chunks > 0 && t.sane(n) {
			return t.spans[t.chunks[n].span].off
		}
	}
	return t.end
}

// ends says whether the tar ends before the TOC. Then the member in front of the TOC goes on, after the last file's data
// and padding, to blocks of zeros.
func (b *tocBuilder) ends(ctx context.Context, blob *tail) (bool, error) {
	t := b.t
	var off, skip int64
	if n := len(t.chunks); n > 0 {
		c := &t.chunks[n-1]
		off = t.spans[c.span].off
		skip = b.inner() + (-(c.offset + c.len()))&(tarBlock-1)
	}
	// The last bytes of a gzip member are how many it unpacks to (RFC 1952, 2.3.1). Where that is just what is known to be in it, the
	// rest of the file and a header for each entry that follows, there is no room for an end; the file itself need not be fetched.
	if t.end > gzipEnd {
		foot, err := blob.at(ctx, t.end-4, 4)
		if err != nil {
			return false, err
		}
		if int64(binary.LittleEndian.Uint32(foot)) == (skip+int64(b.headers)*tarBlock)&math.MaxUint32 {
			return false, nil
		}
		front, err := blob.at(ctx, t.end-gzipEnd, gzipEnd)
		if err != nil {
			return false, err
		}
		if last := lastBlock(front); last != nil {
			return zero(last), nil
		}
	}
	if t.end-off > maxLast {
		return false, nil
	}
	mem, err := blob.at(ctx, off, t.end-off)
	if err != nil {
		return false, err
	}
	r := resumeGzip(bytes.NewReader(mem), span{})
	if _, err := io.CopyN(io.Discard, r, skip); err != nil {
		return false, nil // a chunk that is not there is found out when it is read
	}
	// Headers of files without data may come first; the end, if there is one, is the last block.
	last := make([]byte, tarBlock)
	for n := 0; n < maxHeaders; n += tarBlock {
		if _, err := io.ReadFull(r, last); err != nil {
			return n > 0 && zero(last), nil
		}
	}
	return false, nil
}
