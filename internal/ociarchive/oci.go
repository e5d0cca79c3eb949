package ociarchive

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/microsandbox/msb-fs/remote"
)

// Annotations that name an image: the specification's, which is often just a tag, and containerd's and docker's, which is whole.
const (
	tagAnnotation  = "org.opencontainers.image.ref.name"
	nameAnnotation = "io.containerd.image.name"
)

// Bounds of an index.
const (
	maxImages = 1000
	maxNested = 4 // indexes in indexes
)

// ociImages returns the images that index.json names. Entries of the same name, or without one, are one image for several platforms.
func (a *Archive) ociImages(platform string) ([]Image, error) {
	b, err := a.document(indexFile)
	if err != nil {
		return nil, err
	}
	var index struct {
		Manifests []struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	var raw struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := decode(indexFile, b, &index); err != nil {
		return nil, err
	}
	if err := decode(indexFile, b, &raw); err != nil {
		return nil, err
	}
	if n := len(index.Manifests); n == 0 || n > maxImages {
		return nil, fmt.Errorf("%s names %d images; it has to be 1 to %d", indexFile, n, maxImages)
	}
	var names []string
	groups := map[string][]json.RawMessage{}
	for i, m := range index.Manifests {
		name := m.Annotations[nameAnnotation]
		if name == "" {
			name = m.Annotations[tagAnnotation]
		}
		if groups[name] == nil {
			names = append(names, name)
		}
		groups[name] = append(groups[name], raw.Manifests[i])
	}
	var out []Image
	for _, name := range names {
		img, err := a.ociImage(groups[name], platform)
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", name, err)
		}
		if name != "" {
			img.Names = []string{name}
		}
		out = append(out, *img)
	}
	return out, nil
}

// ociImage returns the image among manifests, descriptors of an index, that suits platform.
func (a *Archive) ociImage(manifests []json.RawMessage, platform string) (*Image, error) {
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": manifests})
	if err != nil {
		return nil, err
	}
	for range maxNested {
		d, err := remote.Choose(index, platform)
		if err != nil {
			return nil, err
		}
		doc, err := a.blobDocument(d.Digest)
		if err != nil {
			return nil, err
		}
		var m v1.Manifest
		var isIndex struct {
			Manifests []json.RawMessage `json:"manifests"`
		}
		if err := decode(d.Digest, doc, &isIndex); err != nil {
			return nil, err
		}
		if isIndex.Manifests != nil {
			index = doc
			continue
		}
		if err := decode(d.Digest, doc, &m); err != nil {
			return nil, err
		}
		config, err := a.blobDocument(m.Config.Digest.String())
		if err != nil {
			return nil, err
		}
		return &Image{Manifest: doc, Config: config}, nil
	}
	return nil, fmt.Errorf("indexes in indexes, more than %d deep", maxNested)
}

// blobDocument reads a JSON blob and holds it against its digest.
func (a *Archive) blobDocument(digest string) ([]byte, error) {
	name, err := blobFile(digest)
	if err != nil {
		return nil, err
	}
	b, err := a.document(name)
	if err != nil {
		return nil, err
	}
	if got := remote.NewContent("", b, nil).Digest; got != digest {
		return nil, fmt.Errorf("blob %s: %w: got %s", digest, remote.ErrDigest, got)
	}
	return b, nil
}

// blobFile is where a layout keeps a blob.
func blobFile(digest string) (string, error) {
	h, ok := strings.CutPrefix(digest, "sha256:")
	if b, err := hex.DecodeString(h); !ok || err != nil || len(b) != 32 || strings.ToLower(h) != h {
		return "", fmt.Errorf("%w: digest %.80q is not sha256:<64 hex digits>", ErrDamaged, digest)
	}
	return "blobs/sha256/" + h, nil
}

// Blob returns a blob that a manifest of the archive names, and its size. Its bytes are not checked. The caller closes it.
func (a *Archive) Blob(digest string) (io.ReadCloser, int64, error) {
	name, ok := a.layers[digest]
	if !ok {
		var err error
		if name, err = blobFile(digest); err != nil {
			return nil, 0, err
		}
	}
	return a.open(name)
}
