// Package ociarchive reads and writes images as files: as an OCI image layout, which is a directory or a tar of one
// (image-spec, image-layout.md), and as the archive that docker save makes.
//
// An archive is somebody else's: nothing is extracted by a path in it, everything that is read into memory is bounded, and who
// takes a blob out of it holds it against its digest.
package ociarchive

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// Errors, for errors.Is.
var (
	ErrUnknown = errors.New("neither an OCI image layout nor a docker archive")
	ErrDamaged = errors.New("the archive is damaged")
)

// Names of files that tell what an archive is.
const (
	layoutFile     = "oci-layout"
	indexFile      = "index.json"
	dockerManifest = "manifest.json"
)

// maxDocument bounds an index, manifest or config, bytes; as much as is taken from a registry. maxDocuments bounds those of
// all images of an archive, which may name the same ones again and again.
const (
	maxDocument  = 8 << 20
	maxDocuments = 128 << 20
)

// Archive is an open archive. It is not safe for concurrent use.
type Archive struct {
	files
	layers map[string]string // blob digest -> file, where the name does not follow from the digest
	read   int64             // bytes of documents, since Images was called
}

// Image is one image of an archive.
type Image struct {
	// Names are what the archive calls it: whole references, or just tags, or nothing. They are not checked.
	Names []string
	// Manifest is the image's manifest, raw; of a docker archive, which has none, one that this package has made.
	Manifest []byte
	Config   []byte // raw
}

// Open opens the archive at path: a directory, or a tar that may be compressed with gzip or zstd and is then unpacked to a
// temporary file in temp. The caller closes it.
func Open(ctx context.Context, path, temp string) (*Archive, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	if fi.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, fmt.Errorf("open archive: %w", err)
		}
		return &Archive{files: directory{root}}, nil
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("open archive %s: neither a file nor a directory", path)
	}
	f, err := openPlain(ctx, path, temp)
	if err != nil {
		return nil, fmt.Errorf("open archive %s: %w", path, err)
	}
	t, err := openTar(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open archive %s: %w", path, err)
	}
	return &Archive{files: t.strip()}, nil
}

// openPlain opens the tar at path, uncompressed.
func openPlain(ctx context.Context, path, temp string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		f.Close()
		return nil, err
	}
	compression := compressionOf(magic[:])
	if compression == "" {
		return f, nil
	}
	defer f.Close()
	plain, err := os.CreateTemp(temp, ".new-*")
	if err != nil {
		return nil, err
	}
	os.Remove(plain.Name()) // it lives as long as it is open
	r, err := decompress(f, compression)
	if err == nil {
		err = copyWithinReason(ctx, plain, r)
		r.Close()
	}
	if err == nil {
		_, err = plain.Seek(0, io.SeekStart)
	}
	if err != nil {
		plain.Close()
		return nil, err
	}
	return plain, nil
}

// compressionOf tells by a file's first bytes what it is compressed with: "gzip", "zstd", or "" for nothing known.
func compressionOf(magic []byte) string {
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return "gzip"
	case len(magic) >= 4 && magic[0] == 0x28 && magic[1] == 0xb5 && magic[2] == 0x2f && magic[3] == 0xfd:
		return "zstd"
	}
	return ""
}

// decompress reads r, which is compressed as compressionOf says. The caller closes what it returns.
func decompress(r io.Reader, compression string) (io.ReadCloser, error) {
	switch compression {
	case "gzip":
		return gzip.NewReader(r)
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// Of what an archive unpacks to, so much is written between two looks at the disk, and so much of the disk is left free.
const (
	copyStep    = 64 << 20
	diskReserve = 20 // one part in so many
)

// copyWithinReason copies r to f until r ends, the disk is nearly full, or ctx is done.
func copyWithinReason(ctx context.Context, f *os.File, r io.Reader) error {
	for {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			return err
		}
		if st.Bavail < st.Blocks/diskReserve {
			return fmt.Errorf("unpack: %w: the disk would be full", unix.ENOSPC)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.CopyN(f, r, copyStep)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: unpack: %w", ErrDamaged, err)
		}
	}
}

// Images returns the images of the archive; of one for several platforms that for platform, "" being the host's.
func (a *Archive) Images(ctx context.Context, platform string) ([]Image, error) {
	a.read = 0
	switch _, err := a.document(indexFile); {
	case err == nil:
		return a.ociImages(platform)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	switch _, err := a.document(dockerManifest); {
	case err == nil:
		return a.dockerImages(ctx)
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrUnknown
	default:
		return nil, err
	}
}

// document reads a JSON file of the archive.
func (a *Archive) document(name string) ([]byte, error) {
	r, size, err := a.open(filepath.ToSlash(name))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("%s: %d bytes; at most %d are taken", name, size, maxDocument)
	}
	if a.read += size; a.read > maxDocuments {
		return nil, fmt.Errorf("%s: its images' documents have more than %d bytes", name, maxDocuments)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, name, err)
	}
	return b, nil
}

func decode(name string, b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, name, err)
	}
	return nil
}
