package ociarchive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/microsandbox/msb-fs/internal/ctxio"
	"github.com/microsandbox/msb-fs/remote"
)

// Content is an image to write: its manifest, and every blob that the manifest names.
type Content struct {
	Reference string         // in full; what the archive calls it
	Manifest  remote.Content // whose MediaType is the manifest's
	Config    remote.Content
	Layers    []remote.Content // bottom first
	DiffIDs   []string         // of Layers
}

// writer writes a tar with nothing in it that depends on who writes it, or when.
type writer struct {
	ctx  context.Context
	w    *tar.Writer
	seen map[string]bool
}

func newWriter(ctx context.Context, w io.Writer) *writer {
	return &writer{ctx: ctx, w: tar.NewWriter(w), seen: map[string]bool{}}
}

func (w *writer) header(name string, size int64) error {
	return w.w.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o644, Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

func (w *writer) file(name string, b []byte) error {
	if err := w.header(name, int64(len(b))); err != nil {
		return err
	}
	_, err := w.w.Write(b)
	return err
}

// blob writes c under name, unless that is there already, and fails when its bytes are not what its digest says.
func (w *writer) blob(name string, c remote.Content) error {
	if w.seen[name] {
		return nil
	}
	w.seen[name] = true
	r, err := c.Open()
	if err != nil {
		return fmt.Errorf("blob %s: %w", c.Digest, err)
	}
	defer r.Close()
	if err := w.header(name, c.Size); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w.w, sum), io.LimitReader(ctxio.Reader(w.ctx, r), c.Size))
	if err == nil && n != c.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", c.Digest, err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != c.Digest {
		return fmt.Errorf("blob %s: %w: got %s", c.Digest, remote.ErrDigest, got)
	}
	return nil
}

// WriteOCI writes img to w as a tar of an OCI image layout. What has been written is of no use unless it returns nil.
func WriteOCI(ctx context.Context, w io.Writer, img Content) error {
	t := newWriter(ctx, w)
	hash, err := v1.NewHash(img.Manifest.Digest)
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{{
		MediaType: types.MediaType(img.Manifest.MediaType), Digest: hash, Size: img.Manifest.Size, Annotations: Annotations(img.Reference)}}})
	if err != nil {
		return err
	}
	if err := errors.Join(t.file(layoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`)), t.file(indexFile, index)); err != nil {
		return err
	}
	for _, b := range append([]remote.Content{img.Manifest, img.Config}, img.Layers...) {
		name, err := blobFile(b.Digest)
		if err != nil {
			return err
		}
		if err := t.blob(name, b); err != nil {
			return err
		}
	}
	return t.w.Close()
}

// Annotations are those that name an image in an index: its tag, where it has one, for tools that expect just that, and all of it.
func Annotations(reference string) map[string]string {
	names := map[string]string{nameAnnotation: reference}
	if tag := Tag(reference); tag != "" {
		names[tagAnnotation] = tag
	}
	return names
}

// Tag is the tag of a reference in full; "" where it has a digest instead.
func Tag(reference string) string {
	if i := strings.LastIndexByte(reference, ':'); i > strings.LastIndexByte(reference, '/') && !strings.Contains(reference, "@") {
		return reference[i+1:]
	}
	return ""
}

// WriteDocker writes img to w as docker save does. Each layer is first unpacked to a temporary file in temp: its size comes before it.
func WriteDocker(ctx context.Context, w io.Writer, img Content, temp string) error {
	t := newWriter(ctx, w)
	name := func(digest, suffix string) string { return strings.TrimPrefix(digest, "sha256:") + suffix }
	entry := dockerImage{Config: name(img.Config.Digest, ".json"), RepoTags: []string{}, Layers: []string{}}
	if Tag(img.Reference) != "" {
		entry.RepoTags = append(entry.RepoTags, familiar(img.Reference))
	}
	if err := t.blob(entry.Config, img.Config); err != nil {
		return err
	}
	if len(img.DiffIDs) != len(img.Layers) {
		return fmt.Errorf("%d layers but %d diff_ids", len(img.Layers), len(img.DiffIDs))
	}
	for i, l := range img.Layers {
		file := name(img.DiffIDs[i], "/layer.tar")
		entry.Layers = append(entry.Layers, file)
		if t.seen[file] {
			continue
		}
		if err := t.unpacked(file, l, img.DiffIDs[i], temp); err != nil {
			return err
		}
	}
	manifest, err := json.Marshal([]dockerImage{entry})
	if err != nil {
		return err
	}
	if err := t.file(dockerManifest, manifest); err != nil {
		return err
	}
	return t.w.Close()
}

// familiar is a reference as docker's users write it.
func familiar(reference string) string {
	s := strings.TrimPrefix(reference, "docker.io/")
	return strings.TrimPrefix(s, "library/")
}

// unpacked writes the tar that l's blob is the compressed form of.
func (w *writer) unpacked(name string, l remote.Content, diffID, temp string) error {
	fail := func(err error) error { return fmt.Errorf("unpack layer %s: %w", l.Digest, err) }
	f, err := os.CreateTemp(temp, ".new-*")
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	os.Remove(f.Name()) // it lives as long as it is open
	r, err := l.Open()
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	blob := sha256.New()
	whole := io.TeeReader(ctxio.Reader(w.ctx, io.LimitReader(r, l.Size)), blob)
	magic := make([]byte, 4)
	n, err := io.ReadFull(whole, magic)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return fail(err)
	}
	plain, err := decompress(io.MultiReader(strings.NewReader(string(magic[:n])), whole), compressionOf(magic[:n]))
	if err != nil {
		return fail(err)
	}
	defer plain.Close()
	if err := copyWithinReason(w.ctx, f, plain); err != nil {
		return fail(err)
	}
	if _, err := io.Copy(io.Discard, whole); err != nil { // what follows the compressed data
		return fail(err)
	}
	if got := "sha256:" + hex.EncodeToString(blob.Sum(nil)); got != l.Digest {
		return fail(fmt.Errorf("%w: got %s", remote.ErrDigest, got))
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return fail(err)
	}
	return w.blob(name, remote.Content{Digest: diffID, Size: size, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, 0, size)), nil
	}})
}
