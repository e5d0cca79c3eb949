// Package testimage makes images for tests, demonstrations and benchmarks: layers from lists of tar entries or from tar
// files, in every form that registries hold, and a real multi-layer image from Debian packages.
//
//	l, err := testimage.NewLayer(testimage.EStargz, testimage.Dir("etc", 0o755), testimage.File("etc/motd", "hello\n"))
//	img, err := testimage.Image(testimage.Config{Cmd: []string{"/bin/sh"}}, l)
//	server.AddImage("demo/app:1", img)
package testimage

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Form is how a layer's tar is stored.
type Form string

// The forms.
const (
	Gzip        Form = "gzip"
	MultiGzip   Form = "multi-gzip" // gzip of many members, as pigz and parallel builders write it
	Zstd        Form = "zstd"
	Tar         Form = "tar"
	EStargz     Form = "estargz"
	ZstdChunked Form = "zstd-chunked"
)

// Forms are all forms.
func Forms() []Form { return []Form{Gzip, MultiGzip, Zstd, Tar, EStargz, ZstdChunked} }

// Layer is a layer of an image. It implements v1.Layer and is safe for concurrent use.
type Layer struct {
	Annotations map[string]string // for the manifest: where the TOC of a lazy form is vouched for

	open           func() (io.ReadCloser, error)
	digest, diffID v1.Hash
	size           int64
	mediaType      types.MediaType
}

var _ v1.Layer = (*Layer)(nil)

// Digest is the sha256 of the stored bytes.
func (l *Layer) Digest() (v1.Hash, error) { return l.digest, nil }

// DiffID is the sha256 of the uncompressed tar.
func (l *Layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// Compressed opens the stored bytes.
func (l *Layer) Compressed() (io.ReadCloser, error) { return l.open() }

// Uncompressed opens the tar.
func (l *Layer) Uncompressed() (io.ReadCloser, error) {
	rc, err := l.open()
	if err != nil {
		return nil, err
	}
	switch l.mediaType {
	case types.OCIUncompressedLayer:
		return rc, nil
	case types.OCILayerZStd:
		z, err := zstd.NewReader(rc)
		if err != nil {
			rc.Close()
			return nil, err
		}
		return inflated{z, func() error { z.Close(); return rc.Close() }}, nil
	default:
		z, err := gzip.NewReader(rc)
		if err != nil {
			rc.Close()
			return nil, err
		}
		return inflated{z, rc.Close}, nil
	}
}

// Size is the length of the stored bytes.
func (l *Layer) Size() (int64, error) { return l.size, nil }

// MediaType is OCI's for the form.
func (l *Layer) MediaType() (types.MediaType, error) { return l.mediaType, nil }

type inflated struct {
	io.Reader
	close func() error
}

func (r inflated) Close() error { return r.close() }

// NewLayer makes a layer of entries, in memory.
func NewLayer(form Form, entries ...Entry) (*Layer, error) {
	var t bytes.Buffer
	if err := WriteTar(&t, entries...); err != nil {
		return nil, err
	}
	var blob bytes.Buffer
	l, err := Convert(&blob, form, bytes.NewReader(t.Bytes()), int64(t.Len()))
	if err != nil {
		return nil, err
	}
	b := blob.Bytes()
	l.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	return l, nil
}

// FileLayer makes a layer of the tar file at path and keeps its stored bytes in a file in dir, so that it may be larger
// than memory. The layer is good for as long as that file.
func FileLayer(form Form, path, dir string, opts ...estargz.Option) (*Layer, error) {
	t, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	defer t.Close()
	fi, err := t.Stat()
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	defer f.Close()
	l, err := Convert(f, form, t, fi.Size(), opts...)
	if err != nil {
		os.Remove(f.Name())
		return nil, fmt.Errorf("make layer of %s: %w", path, err)
	}
	to := filepath.Join(dir, l.digest.Hex)
	if err := os.Rename(f.Name(), to); err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	l.open = func() (io.ReadCloser, error) { return os.Open(to) }
	return l, nil
}

// RawLayer is a layer of any bytes, claimed to be of the digests they have and of a media type.
func RawLayer(blob, tar []byte, mediaType types.MediaType) *Layer {
	return &Layer{
		open:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil },
		digest: sum(blob), diffID: sum(tar), size: int64(len(blob)), mediaType: mediaType,
	}
}

func sum(b []byte) v1.Hash {
	h := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h[:])}
}

// member is how much of the tar one member of a MultiGzip layer holds, bytes.
const member = 100_000

// Convert writes the tar t of size bytes to w in a form; what it returns has everything but a way to be opened.
// The options are of the forms with a TOC.
func Convert(w io.Writer, form Form, t io.ReaderAt, size int64, opts ...estargz.Option) (*Layer, error) {
	out := &digester{w: w, h: sha256.New()}
	diff := sha256.New()
	in := io.TeeReader(io.NewSectionReader(t, 0, size), diff)
	l := &Layer{mediaType: types.OCILayer}
	var err error
	switch form {
	case Tar:
		l.mediaType = types.OCIUncompressedLayer
		_, err = io.Copy(out, in)
	case Gzip:
		err = gzipMember(out, in)
	case MultiGzip:
		for left := size; left > 0 && err == nil; left -= member {
			err = gzipMember(out, io.LimitReader(in, member))
		}
	case Zstd:
		l.mediaType = types.OCILayerZStd
		err = zstdAll(out, in)
	case EStargz, ZstdChunked:
		return convertTOC(out, form, io.NewSectionReader(t, 0, size), opts)
	default:
		err = fmt.Errorf("unknown form %q", form)
	}
	if err != nil {
		return nil, fmt.Errorf("convert to %s: %w", form, err)
	}
	l.diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(diff.Sum(nil))}
	out.describe(l)
	return l, nil
}

func gzipMember(w io.Writer, r io.Reader) error {
	z := gzip.NewWriter(w)
	if _, err := io.Copy(z, r); err != nil {
		return err
	}
	return z.Close()
}

func zstdAll(w io.Writer, r io.Reader) error {
	z, err := zstd.NewWriter(w)
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, r); err != nil {
		return err
	}
	return z.Close()
}

// convertTOC makes the forms that carry a table of contents: their tar differs from the one they are made of.
func convertTOC(out *digester, form Form, t *io.SectionReader, opts []estargz.Option) (*Layer, error) {
	l := &Layer{mediaType: types.OCILayer, Annotations: map[string]string{}}
	opts = append([]estargz.Option{estargz.WithCompressionLevel(gzip.DefaultCompression)}, opts...)
	if form == ZstdChunked {
		l.mediaType = types.OCILayerZStd
		opts = append(opts, estargz.WithCompression(&zstdCompression{
			Compressor: zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: l.Annotations},
		}))
	}
	blob, err := estargz.Build(t, opts...)
	if err != nil {
		return nil, fmt.Errorf("convert to %s: %w", form, err)
	}
	defer blob.Close()
	if _, err := io.Copy(out, blob); err != nil {
		return nil, fmt.Errorf("convert to %s: %w", form, err)
	}
	l.Annotations[estargz.TOCJSONDigestAnnotation] = blob.TOCDigest().String()
	if l.diffID, err = v1.NewHash(blob.DiffID().String()); err != nil {
		return nil, fmt.Errorf("convert to %s: %w", form, err)
	}
	out.describe(l)
	return l, nil
}

// zstdCompression is both directions, as estargz.Build wants them.
type zstdCompression struct {
	zstdchunked.Compressor
	zstdchunked.Decompressor
}

// digester counts and hashes what is written.
type digester struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (d *digester) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	d.h.Write(p[:n])
	d.n += int64(n)
	return n, err
}

func (d *digester) describe(l *Layer) {
	l.digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(d.h.Sum(nil))}
	l.size = d.n
}
