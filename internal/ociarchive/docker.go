package ociarchive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/microsandbox/msb-fs/internal/ctxio"
	"github.com/microsandbox/msb-fs/remote"
)

// dockerImage is an entry of manifest.json, as docker save writes it
// (https://github.com/moby/docker-image-spec/blob/v1.3.1/v1.2.md, combined image JSON and filesystem changeset format).
type dockerImage struct {
	Config   string   // path of the config
	RepoTags []string // whole references
	Layers   []string // paths of the layers, bottom first
}

// maxLayers is as many as an image may have.
const maxLayers = 127

// dockerImages makes a manifest for each image of a docker archive: its layers as they are there.
func (a *Archive) dockerImages(ctx context.Context) ([]Image, error) {
	b, err := a.document(dockerManifest)
	if err != nil {
		return nil, err
	}
	var list []dockerImage
	if err := decode(dockerManifest, b, &list); err != nil {
		return nil, err
	}
	if len(list) == 0 || len(list) > maxImages {
		return nil, fmt.Errorf("%s names %d images; it has to be 1 to %d", dockerManifest, len(list), maxImages)
	}
	a.layers = map[string]string{}
	known := map[string]v1.Descriptor{}
	var out []Image
	for _, d := range list {
		img, err := a.dockerImage(ctx, d, known)
		if err != nil {
			return nil, err
		}
		out = append(out, *img)
	}
	return out, nil
}

func (a *Archive) dockerImage(ctx context.Context, d dockerImage, known map[string]v1.Descriptor) (*Image, error) {
	if len(d.Layers) > maxLayers {
		return nil, fmt.Errorf("%s names %d layers; %d are the most", dockerManifest, len(d.Layers), maxLayers)
	}
	if !fs.ValidPath(path.Clean(d.Config)) {
		return nil, fmt.Errorf("%w: config %q is not inside the archive", ErrDamaged, d.Config)
	}
	config, err := a.document(path.Clean(d.Config))
	if err != nil {
		return nil, err
	}
	c := remote.NewContent(string(types.OCIConfigJSON), config, nil)
	hash, err := v1.NewHash(c.Digest)
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{},
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: c.Size, Digest: hash}}
	for _, name := range d.Layers {
		name = path.Clean(name)
		desc, ok := known[name]
		if !ok {
			if desc, err = a.describeLayer(ctx, name); err != nil {
				return nil, err
			}
			known[name] = desc
		}
		m.Layers = append(m.Layers, desc)
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &Image{Names: d.RepoTags, Manifest: manifest, Config: config}, nil
}

// describeLayer reads a layer to its end, to know its digest, and remembers where it is.
func (a *Archive) describeLayer(ctx context.Context, name string) (v1.Descriptor, error) {
	var d v1.Descriptor
	if !fs.ValidPath(name) {
		return d, fmt.Errorf("%w: layer %q is not inside the archive", ErrDamaged, name)
	}
	r, size, err := a.open(name)
	if err != nil {
		return d, fmt.Errorf("%w: layer %w", ErrDamaged, err)
	}
	defer r.Close()
	sum := sha256.New()
	magic := &head{}
	n, err := io.Copy(io.MultiWriter(sum, magic), ctxio.Reader(ctx, r))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return d, fmt.Errorf("%w: layer %s: %w", ErrDamaged, name, err)
	}
	d = v1.Descriptor{Size: size, MediaType: types.OCIUncompressedLayer, Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}}
	switch compressionOf(magic.b) {
	case "gzip":
		d.MediaType = types.OCILayer
	case "zstd":
		d.MediaType = types.OCILayerZStd
	}
	a.layers[d.Digest.String()] = name
	return d, nil
}

// head keeps the first bytes that are written to it.
type head struct{ b []byte }

func (h *head) Write(p []byte) (int, error) {
	if n := 4 - len(h.b); n > 0 {
		h.b = append(h.b, p[:min(n, len(p))]...)
	}
	return len(p), nil
}
