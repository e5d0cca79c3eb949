package daemon

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/microsandbox/msb-fs/cow"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/remote"
)

// withUpper opens req.Upper over the image that it was written over, for fn. It must not be in use.
func (d *daemon) withUpper(ctx context.Context, req api.UpperRequest, fn func(*openImage, *cow.FS) error) (err error) {
	dir, a := req.Upper, req.Access
	if err := absolute("upper directory", dir); err != nil {
		return err
	}
	digest, err := cow.LowerDigest(dir)
	if err != nil {
		return err
	}
	if req.Image != "" {
		img, err := d.images.resolve(ctx, api.ImageRequest{Image: req.Image, Access: a})
		if err != nil {
			return err
		}
		if img.Digest != digest {
			return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%s was written over %s, not over %s (%s)", dir, digest, req.Image, img.Digest)}
		}
	}
	img, err := d.images.pins.manifest(digest)
	if err != nil {
		return err
	}
	if img == nil {
		return &api.Error{Code: api.CodeNotCached, Message: fmt.Sprintf("%s was written over %s, which is not cached: pull it first", dir, digest)}
	}
	o, _, err := d.images.acquire(ctx, img, a)
	if err != nil {
		return err
	}
	defer d.release(o)
	upper, err := cow.New(o.tree, dir, cow.Options{LowerDigest: digest})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, upper.Close()) }()
	return fn(o, upper)
}

func (d *daemon) postDiff(w http.ResponseWriter, r *http.Request) error {
	var req api.UpperRequest
	if err := read(r, &req); err != nil {
		return err
	}
	return d.withUpper(r.Context(), req, func(_ *openImage, upper *cow.FS) error {
		out := &body{w: w}
		lines := json.NewEncoder(out)
		for c, err := range upper.Diff(r.Context()) {
			if err == nil {
				err = lines.Encode(api.Change{Path: "/" + c.Path, Kind: string(c.Kind)})
			}
			if err != nil {
				return out.end(err)
			}
		}
		return nil
	})
}

func (d *daemon) postCommit(w http.ResponseWriter, r *http.Request) error {
	var req api.CommitRequest
	if err := read(r, &req); err != nil {
		return err
	}
	if req.Layout != "" || req.Reference == "" {
		if err := absolute("OCI layout", req.Layout); err != nil {
			return err
		}
	}
	return d.withUpper(r.Context(), req.UpperRequest, func(o *openImage, upper *cow.FS) error {
		layer, err := exportLayer(r.Context(), upper, d.home.Cache("chunks"))
		if err != nil {
			return err
		}
		defer os.Remove(layer.path)
		img, err := layer.over(r.Context(), o)
		if err != nil {
			return err
		}
		if req.Layout != "" {
			err = writeLayout(r.Context(), req.Layout, req.Tag, img)
		} else {
			err = d.push(r.Context(), req, img)
		}
		if err != nil {
			return err
		}
		return write(w, api.Committed{Digest: img.manifest.Digest})
	})
}

// exported is an upper as a gzip'd layer in a temporary file.
type exported struct {
	path           string
	digest, diffID v1.Hash
	size           int64
}

// exportLayer writes upper to a temporary file in dir. The same content gives the same bytes.
func exportLayer(ctx context.Context, upper *cow.FS, dir string) (_ *exported, err error) {
	f, err := os.CreateTemp(dir, "commit.*.tmp")
	if err != nil {
		return nil, fmt.Errorf("export layer: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	blob, tar := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(f, blob))
	if err := upper.ExportLayer(ctx, io.MultiWriter(z, tar)); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("export layer: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("export layer: %w", err)
	}
	hash := func(sum []byte) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum)} }
	return &exported{path: f.Name(), digest: hash(blob.Sum(nil)), diffID: hash(tar.Sum(nil)), size: fi.Size()}, nil
}

// madeImage is a new image: its manifest and the blobs that it names.
type madeImage struct {
	manifest remote.Content
	blobs    []remote.Content
}

// over is the image of e's layer on top of o, whose blobs can be read until ctx is done.
func (e *exported) over(ctx context.Context, o *openImage) (*madeImage, error) {
	var config v1.ConfigFile
	if err := json.Unmarshal(o.Config, &config); err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(o.Manifest, &manifest); err != nil {
		return nil, fmt.Errorf("read image manifest: %w", err)
	}
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, e.diffID)
	// The base's time, not now's: the same content makes the same image.
	config.History = append(config.History, v1.History{Created: config.Created, CreatedBy: "msb-fs commit"})
	configJSON, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	media := types.OCILayer
	if manifest.MediaType == types.DockerManifestSchema2 {
		media = types.DockerLayer
	}
	content := remote.NewContent(string(manifest.Config.MediaType), configJSON, nil)
	made := &madeImage{blobs: []remote.Content{content, {MediaType: string(media), Digest: e.digest.String(), Size: e.size,
		Open: func() (io.ReadCloser, error) { return os.Open(e.path) }}}}
	for _, l := range o.layers {
		made.blobs = append(made.blobs, remote.Content{Digest: l.blob.Digest(), Size: l.blob.Size(),
			Open: func() (io.ReadCloser, error) { return l.blob.Open(ctx, 0) }})
	}
	if manifest.Config.Digest, err = v1.NewHash(content.Digest); err != nil {
		return nil, err
	}
	manifest.Config.Size, manifest.Config.Data = content.Size, nil
	manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: media, Digest: e.digest, Size: e.size})
	manifest.Subject = nil
	manifestJSON, err := json.Marshal(manifest)
	if err != nil {
		return nil, err
	}
	made.manifest = remote.NewContent(o.MediaType, manifestJSON, nil)
	return made, nil
}

// push stores img under req.Reference.
func (d *daemon) push(ctx context.Context, req api.CommitRequest, img *madeImage) error {
	client, access, err := d.images.registries.client(req.Access)
	if err != nil {
		return err
	}
	manifest, err := readAll(img.manifest)
	if err != nil {
		return err
	}
	return client.PushImage(ctx, req.Reference, img.manifest.MediaType, manifest, img.blobs, access)
}

func readAll(c remote.Content) ([]byte, error) {
	r, err := c.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
