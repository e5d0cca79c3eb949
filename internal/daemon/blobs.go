package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/ctxio"
	"github.com/microsandbox/msb-fs/layer"
	"github.com/microsandbox/msb-fs/remote"
)

// layerBlob is a layer's blob: in a registry, or a file of this home.
type layerBlob interface {
	layer.Blob
	Digest() string
	Stats() remote.Stats // of what it has cost the network
	Close() error
}

var (
	_ layerBlob = (*keptBlob)(nil)
	_ layerBlob = (*localBlob)(nil)
)

// localBlob is a blob that has been loaded from an archive.
type localBlob struct {
	f      *os.File
	digest string
	size   int64
}

// Size is the blob's length in bytes.
func (b *localBlob) Size() int64 { return b.size }

// Digest names the blob.
func (b *localBlob) Digest() string { return b.digest }

// Stats are zero: the network has nothing to do with it.
func (b *localBlob) Stats() remote.Stats { return remote.Stats{} }

// ReadAt fills p from offset off.
func (b *localBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return b.f.ReadAt(p, off)
}

// Open reads from off to the end.
func (b *localBlob) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	return io.NopCloser(ctxio.Reader(ctx, io.NewSectionReader(b.f, off, b.size-off))), nil
}

// Close closes the file.
func (b *localBlob) Close() error { return b.f.Close() }

func (im *images) blobFile(digest string) string {
	return filepath.Join(im.home.Cache("blobs"), strings.TrimPrefix(digest, "sha256:"))
}

// local tells whether the blob of l is a file of this home.
func (im *images) local(l remote.Layer) bool {
	fi, err := os.Stat(im.blobFile(l.Digest))
	return err == nil && fi.Mode().IsRegular() && fi.Size() == l.Size
}

// localBlob opens the blob of l if it is a file of this home; nil where it is not.
func (im *images) localBlob(l remote.Layer) (*localBlob, error) {
	if !im.local(l) {
		return nil, nil
	}
	f, err := os.Open(im.blobFile(l.Digest))
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", l.Digest, err)
	}
	return &localBlob{f: f, digest: l.Digest, size: l.Size}, nil
}

// verifyBlobs holds the blobs that have been loaded against their digests and removes those that are wrong.
func (im *images) verifyBlobs(ctx context.Context) (v api.Verified, err error) {
	names, err := cached(im.home.Cache("blobs"), nil)
	if err != nil {
		return v, err
	}
	for _, digest := range names {
		f, err := os.Open(im.blobFile(digest))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return v, fmt.Errorf("verify %s: %w", digest, err)
		}
		got, n, err := sha256Of(ctxio.Reader(ctx, f))
		f.Close()
		if err != nil {
			return v, fmt.Errorf("verify %s: %w", digest, err)
		}
		v.Bytes += n
		if got != digest {
			v.Wrong++
			if err := os.Remove(im.blobFile(digest)); err != nil {
				return v, fmt.Errorf("verify %s: %w", digest, err)
			}
		}
	}
	return v, nil
}
