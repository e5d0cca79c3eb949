package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/microsandbox/msb-fs/remote"
)

// tagAnnotation names an image in an OCI layout (image-spec, annotations.md).
const tagAnnotation = "org.opencontainers.image.ref.name"

// writeLayout adds img to the OCI image layout in dir, which is made if need be, as tag. See image-spec, image-layout.md.
// What is there already stays: blobs come first, the index last, each whole or not at all.
func writeLayout(ctx context.Context, dir, tag string, img *madeImage) error {
	fail := func(err error) error { return fmt.Errorf("write OCI layout %s: %w", dir, err) }
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return fail(err)
	}
	for _, b := range append(img.blobs, img.manifest) {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		if err := writeBlob(blobs, b); err != nil {
			return fail(err)
		}
	}
	if err := syncDir(blobs); err != nil {
		return fail(err)
	}
	if err := replaceFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return fail(err)
	}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	path := filepath.Join(dir, "index.json")
	if b, err := os.ReadFile(path); err == nil {
		err = json.Unmarshal(b, &index)
		if err != nil {
			return fail(fmt.Errorf("index.json: %w", err))
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fail(err)
	}
	kept := index.Manifests[:0]
	for _, m := range index.Manifests {
		if m.Annotations[tagAnnotation] != tag {
			kept = append(kept, m)
		}
	}
	digest, err := v1.NewHash(img.manifest.Digest)
	if err != nil {
		return fail(err)
	}
	index.Manifests = append(kept, v1.Descriptor{MediaType: types.MediaType(img.manifest.MediaType), Digest: digest, Size: img.manifest.Size,
		Annotations: map[string]string{tagAnnotation: tag}})
	b, err := json.Marshal(index)
	if err == nil {
		err = replaceFile(path, b)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// writeBlob copies c into dir, unless it is there, and checks its digest on the way.
func writeBlob(dir string, c remote.Content) error {
	path := filepath.Join(dir, strings.TrimPrefix(c.Digest, "sha256:"))
	if fi, err := os.Stat(path); err == nil && fi.Size() == c.Size {
		return nil
	}
	r, err := c.Open()
	if err != nil {
		return fmt.Errorf("blob %s: %w", c.Digest, err)
	}
	defer r.Close()
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // of no effect once it is renamed
	got, _, err := sha256Of(io.TeeReader(r, f))
	if err == nil && got != c.Digest {
		err = fmt.Errorf("%w: got %s", remote.ErrDigest, got)
	}
	if err == nil {
		err = f.Sync() // before it has its name: what has it is whole, also after a power failure
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("blob %s: %w", c.Digest, err)
	}
	return os.Rename(f.Name(), path)
}

// sha256Of reads r to its end and returns its digest and length.
func sha256Of(r io.Reader) (digest string, n int64, err error) {
	sum := sha256.New()
	n, err = io.Copy(sum, r)
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), n, err
}

// replaceFile writes b to path, whole or not at all, also when the power fails.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // of no effect once it is renamed
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir brings the names in dir to the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
