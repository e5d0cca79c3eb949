package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
)

// errNoTOC is why a layer's TOC is not used; the layer is then treated as a plain one.
var errNoTOC = errors.New("TOC is not used")

// noTOC makes an errNoTOC.
func noTOC(format string, a ...any) error {
	return fmt.Errorf("%w: %w", errNoTOC, fmt.Errorf(format, a...))
}

// tocPlace is what the manifest says about a layer's TOC. Only digests that the manifest names are trusted.
type tocPlace struct {
	form   form
	digest Digest // of the JSON, or of the TOC as stored when packed is set
	packed bool
	off    int64 // in the blob; 0 when its footer has to say
	len    int64
}

// tocOf reads d's annotations. nil means that no TOC can be trusted; why says so for Mode.
func tocOf(d *Descriptor) (p *tocPlace, why string) {
	if pos := d.Annotations[zstdchunked.ManifestPositionAnnotation]; pos != "" {
		sum, err := parseDigest(d.Annotations[zstdchunked.ManifestChecksumAnnotation])
		if err != nil {
			return nil, "the manifest places a zstd:chunked TOC but does not name its digest"
		}
		f := strings.Split(pos, ":") // offset, length, length of the JSON, type
		if len(f) != 4 {
			return nil, "the manifest's zstd:chunked annotation is malformed"
		}
		off, err1 := strconv.ParseInt(f[0], 10, 64)
		n, err2 := strconv.ParseInt(f[1], 10, 64)
		if err1 != nil || err2 != nil || f[3] != "1" {
			return nil, "the manifest's zstd:chunked annotation is malformed"
		}
		return &tocPlace{form: formZstdParts, digest: sum, packed: true, off: off, len: n}, ""
	}
	sum, err := parseDigest(d.Annotations[estargz.TOCJSONDigestAnnotation])
	if err != nil {
		return nil, "the manifest vouches for no TOC"
	}
	if strings.HasSuffix(d.MediaType, "zstd") {
		return &tocPlace{form: formZstdParts, digest: sum}, ""
	}
	return &tocPlace{form: formGzipParts, digest: sum}, ""
}

// A TOC takes less than a hundredth of its blob, mostly. Where nobody knows its place, one read of a blob's tail should hold it, its
// footer included; where it does not, another one gets the rest.
const (
	minTail  = 64 << 10
	maxTail  = 2 << 20
	tailPart = 128 // of the blob
	// smallBlob is the longest blob that is read as a whole, and kept in memory, bytes: a second request would take longer.
	smallBlob = 128 << 10
	// gzipEnd is what goes with a TOC of what is in front of it, bytes: see tocBuilder.ends.
	gzipEnd = 1 << 10
	// leastTOC is less than any TOC takes with its footer, bytes.
	leastTOC = 128
)

// opening is the part of a blob of size bytes that is read first to get at the TOC at p.
func (p *tocPlace) opening(size int64, o *Options) (off, n int64) {
	if size <= smallBlob {
		return 0, size
	}
	if p.off > 0 {
		return p.off, p.len // which may be nonsense
	}
	if from := o.TOC - gzipEnd; from > 0 && from < size-leastTOC && size-from <= max(maxTail, size/16) {
		return from, size - from
	}
	most := int64(maxTail)
	if o.Tail > 0 {
		most = min(most, max(minTail, o.Tail))
	}
	n = min(size, max(minTail, min(most, size/tailPart)))
	return size - n, n
}

// Opening says which part of a blob Open would read first, so that somebody can ask for it ahead; n is 0 when it would read
// nothing, or the layer streams.
func Opening(d Descriptor, o Options) (off, n int64) {
	id, err := parseDigest(d.Digest)
	if err != nil {
		return 0, 0
	}
	p, _ := tocOf(&d)
	if p == nil || indexed(o.Dir, id, p.digest) || indexed(o.Dir, id, Digest{}) {
		return 0, 0
	}
	if off, n = p.opening(d.Size, &o); off < 0 || n < 0 || n > MaxTOCBlob || off > d.Size-n {
		return 0, 0
	}
	return off, n
}

// indexed says whether there seems to be an index file.
func indexed(dir string, layer, toc Digest) bool {
	if dir == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, indexName(layer, toc)))
	return err == nil
}

// readTOC reads the TOC at p and makes a table of it. An errNoTOC says that it cannot be used; any other error that the
// blob could not be read. What has been read of the blob's end on the way is in tail.
func readTOC(ctx context.Context, d *Descriptor, tail *tail, p *tocPlace, o *Options) (*table, error) {
	b := tail.b
	packed, off, err := packedTOC(ctx, tail, p, o)
	if err != nil {
		return nil, err
	}
	t := &table{form: p.form, blob: b.Size(), end: off}
	r, err := unpackTOC(packed, p)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	sums := newSummer()
	limited := &io.LimitedReader{R: r, N: MaxTOC + 1}
	tee := io.TeeReader(limited, sums)
	tb := tocBuilder{builder: builder{t: t}}
	if err := decodeTOC(tee, tb.add); err != nil {
		return nil, noTOC("%w", err)
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return nil, noTOC("%w", err)
	}
	if limited.N <= 0 {
		return nil, noTOC("it is longer than %d bytes", MaxTOC)
	}
	if !p.packed && Digest(sums.whole.Sum(nil)) != p.digest {
		return nil, noTOC("its digest is not the one the manifest names")
	}
	if err := tb.finish(); err != nil {
		return nil, noTOC("%w", err)
	}
	if p.form == formGzipParts {
		if err := tb.addTOC(ctx, tail, int64(len(packed)), sums.finish()); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// packedTOC returns the TOC as it is stored, and where.
func packedTOC(ctx context.Context, b *tail, p *tocPlace, o *Options) (packed []byte, off int64, err error) {
	size := b.b.Size()
	off, n := p.off, p.len
	if off == 0 || size <= smallBlob {
		from, _ := p.opening(size, o)
		if err := b.read(ctx, from); err != nil {
			return nil, 0, err
		}
	}
	if off == 0 {
		end := int64(0)
		if off, end, err = footer(b.mem, size, p.form); err != nil {
			return nil, 0, err
		}
		n = end - off
	}
	if off <= 0 || n <= 0 || n > MaxTOCBlob || off > size || n > size-off {
		return nil, 0, noTOC("its place is not inside of the blob")
	}
	if p.form == formGzipParts && off > gzipEnd {
		if err := b.read(ctx, off-gzipEnd); err != nil {
			return nil, 0, err
		}
	}
	packed, err = b.at(ctx, off, n)
	return packed, off, err
}

// tail is a blob of which the end is in memory.
type tail struct {
	b   Blob
	mem []byte
}

// read brings the blob here from offset off on, which is inside of it, as far as it is not here yet.
func (t *tail) read(ctx context.Context, off int64) error {
	have := t.b.Size() - int64(len(t.mem))
	if off >= have {
		return nil
	}
	mem := make([]byte, t.b.Size()-off)
	if _, err := t.b.ReadAt(ctx, mem[:have-off], off); err != nil {
		return fmt.Errorf("read the blob's tail: %w", err)
	}
	copy(mem[have-off:], t.mem)
	t.mem = mem
	return nil
}

// at is the blob's [off,+n), which is inside of the blob.
func (t *tail) at(ctx context.Context, off, n int64) ([]byte, error) {
	if have := t.b.Size() - int64(len(t.mem)); off >= have {
		return t.mem[off-have : off-have+n], nil
	}
	p := make([]byte, n)
	if _, err := t.b.ReadAt(ctx, p, off); err != nil {
		return nil, fmt.Errorf("read the TOC: %w", err)
	}
	return p, nil
}

// footer finds the TOC by the footer at the end of tail, the end of a blob of size bytes. The forms of footers are in the
// sources of estargz (gzip.go, the legacy one too) and of its zstdchunked package; parsing is done here because
// estargz v0.19.1 panics at extra fields that are shorter than they say.
func footer(tail []byte, size int64, f form) (off, end int64, err error) {
	var ok bool
	switch n := len(tail); {
	case f == formZstdParts && n >= zstdchunked.FooterSize:
		off, end, ok = zstdFooter(tail[n-zstdchunked.FooterSize:])
	case f == formGzipParts && n >= estargz.FooterSize:
		if off, ok = gzipFooter(tail[n-estargz.FooterSize:], "SG\x16\x00"); ok {
			end = size - estargz.FooterSize
		} else if off, ok = gzipFooter(tail[n-legacyFooterSize:], ""); ok {
			end = size - legacyFooterSize
		}
	}
	if !ok {
		return 0, 0, noTOC("the blob has no footer")
	}
	if off <= 0 || off >= end || end > size || end-off > MaxTOCBlob {
		return 0, 0, noTOC("its place is not inside of the blob")
	}
	return off, end, nil
}

// legacyFooterSize is the length of the footer of stargz, before eStargz, bytes.
const legacyFooterSize = 47

// gzipFooter is the offset of the TOC that b names, an empty gzip member with an extra field (RFC 1952, 2.3.1.1): prefix,
// the offset in 16 hexadecimal digits, "STARGZ".
func gzipFooter(b []byte, prefix string) (off int64, ok bool) {
	extra, fits := bytes.CutPrefix(b, []byte{0x1f, 0x8b, 8, 4})
	const digits, magic = 16, "STARGZ"
	n := len(prefix) + digits + len(magic)
	if !fits || len(extra) < 6+2+n || int(binary.LittleEndian.Uint16(extra[6:])) != n {
		return 0, false
	}
	s := string(extra[8 : 8+n])
	if !strings.HasPrefix(s, prefix) || !strings.HasSuffix(s, magic) {
		return 0, false
	}
	off, err := strconv.ParseInt(s[len(prefix):len(prefix)+digits], 16, 64)
	return off, err == nil
}

// zstdFooter is the place of the TOC that b names, the contents of a skippable frame: offset, length, length of the JSON,
// type (8 bytes each) and a magic number.
func zstdFooter(b []byte) (off, end int64, ok bool) {
	off, n := int64(binary.LittleEndian.Uint64(b)), int64(binary.LittleEndian.Uint64(b[8:]))
	if string(b[32:40]) != "GnUlInUx" || off < 0 || n < 0 || off > 1<<62 || n > 1<<62 {
		return 0, 0, false
	}
	return off, off + n, true
}

// unpackTOC is the JSON of a TOC.
func unpackTOC(packed []byte, p *tocPlace) (io.ReadCloser, error) {
	if p.packed && sha256.Sum256(packed) != p.digest {
		return nil, noTOC("its digest is not the one the manifest names")
	}
	if p.form == formZstdParts {
		z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(MaxWindow))
		if err != nil {
			return nil, noTOC("%w", err)
		}
		return z.IOReadCloser(), nil
	}
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, noTOC("%w", err)
	}
	zr.Multistream(false)
	tr := tar.NewReader(zr)
	h, err := tr.Next()
	if err != nil || h.Name != estargz.TOCTarName {
		return nil, noTOC("no %s where the footer says", estargz.TOCTarName)
	}
	return io.NopCloser(tr), nil
}

// tocEntry is an entry of an eStargz or zstd:chunked TOC: docs/estargz.md of stargz-snapshotter, and pkg/chunked of
// containers/storage, which has some fields more.
type tocEntry struct {
	estargz.TOCEntry
	ChunkType string `json:"chunkType,omitempty"` // "zeros": nothing but zeros
}

// decodeTOC calls add with the entries of the TOC in r, without having all of them in memory.
func decodeTOC(r io.Reader, add func(*tocEntry) error) error {
	dec := json.NewDecoder(r)
	if err := expect(dec, json.Delim('{')); err != nil {
		return err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		if key != "entries" {
			var skip json.RawMessage
			if err := dec.Decode(&skip); err != nil {
				return err
			}
			if key == "version" && string(skip) != "1" {
				return fmt.Errorf("it has the version %s", short(string(skip)))
			}
			continue
		}
		if err := expect(dec, json.Delim('[')); err != nil {
			return err
		}
		for dec.More() {
			var e tocEntry
			if err := dec.Decode(&e); err != nil {
				return err
			}
			if err := add(&e); err != nil {
				return err
			}
		}
		if err := expect(dec, json.Delim(']')); err != nil {
			return err
		}
	}
	return expect(dec, json.Delim('}'))
}

func expect(dec *json.Decoder, want json.Delim) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	if tok != want {
		return fmt.Errorf("it has %v where %v belongs", tok, want)
	}
	return nil
}

// tocTypes are the TOC's names of tar types.
func tocType(name string) (byte, bool) {
	switch name {
	case "reg":
		return tar.TypeReg, true
	case "dir":
		return tar.TypeDir, true
	case "symlink":
		return tar.TypeSymlink, true
	case "hardlink":
		return tar.TypeLink, true
	case "char":
		return tar.TypeChar, true
	case "block":
		return tar.TypeBlock, true
	case "fifo":
		return tar.TypeFifo, true
	}
	return 0, false
}

// entry is the Entry of e.
func (e *tocEntry) entry() (Entry, error) {
	typ, ok := tocType(e.Type)
	if !ok {
		return Entry{}, refused("%q is of the unknown type %q", short(e.Name), short(e.Type))
	}
	// JSON has no bytes: what is not UTF-8 was replaced when the TOC was written, and only the tar knows the name.
	if strings.ContainsRune(e.Name, '\uFFFD') || strings.ContainsRune(e.LinkName, '\uFFFD') {
		return Entry{}, fmt.Errorf("the name %q cannot be told from it", short(e.Name))
	}
	mtime := time.Unix(0, 0)
	if e.ModTime3339 != "" {
		var err error
		if mtime, err = time.Parse(time.RFC3339Nano, e.ModTime3339); err != nil {
			return Entry{}, fmt.Errorf("%q has the time %q", short(e.Name), short(e.ModTime3339))
		}
	}
	a := attributes{
		name: e.Name, link: e.LinkName, mode: e.Mode, uid: int64(e.UID), gid: int64(e.GID), major: int64(e.DevMajor),
		minor: int64(e.DevMinor), size: e.Size, mtime: mtime, typ: typ,
	}
	out, _, err := a.entry()
	if err != nil {
		return out, err
	}
	for k, v := range e.Xattrs {
		out.Xattrs = append(out.Xattrs, Xattr{Name: k, Value: v})
	}
	return out, nil
}
