package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/layer"
	"github.com/microsandbox/msb-fs/remote"
)

// How layer indexes travel: as an OCI artifact whose subject is the image's manifest, one blob per layer.
const (
	indexArtifact   = "application/vnd.microsandbox.index.v1"
	indexBlob       = "application/vnd.microsandbox.layer-index.v1+zstd"
	indexLayer      = "dev.microsandbox.layer.digest" // annotation of a blob: the layer it is the index of
	maxIndexBlob    = 256 << 20                       // bytes, compressed
	maxIndexSources = 8                               // artifacts that are looked at
	indexWorthwhile = 1 << 20                         // bytes of a layer; a smaller one is streamed sooner than asked about
)

// findIndexes brings the indexes of img's layers, as far as they are needed and somebody has published them: in the
// repositories of config.json's index.pull_from, or beside the image. That there is none is no error.
func (im *images) findIndexes(ctx context.Context, img *remote.Image, a api.Access) (found int, err error) {
	client, access, err := im.registries.client(a)
	if err != nil {
		return 0, err
	}
	config, err := im.registries.config()
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, repository := range append(slices.Clone(config.IndexPullFrom), remote.Repository(img.Reference)) {
		n, err := im.pullIndexes(ctx, client, repository, img, access)
		found += n
		errs = append(errs, err)
		if n > 0 {
			break
		}
	}
	return found, errors.Join(errs...)
}

// indexPatience is how long the opening of an image waits for somebody's index. Without one its layers are streamed.
const indexPatience = 2 * time.Second

// seekIndexes looks for published indexes where a layer of img would have to be streamed for want of one.
func (im *images) seekIndexes(ctx context.Context, img *remote.Image, a api.Access) {
	dir := im.home.Cache("layers")
	lazy := func(l remote.Layer) bool {
		return l.Size < indexWorthwhile || layer.Lazy(dir, descriptor(l)) || im.local(l)
	}
	if !slices.ContainsFunc(img.Layers, func(l remote.Layer) bool { return !lazy(l) }) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, indexPatience)
	defer cancel()
	if n, err := im.findIndexes(ctx, img, a); n == 0 && err != nil {
		im.log.Debug("no published index", "image", img.Reference, "err", err)
	}
}

// pullIndexes imports the indexes that repository has for img's layers.
func (im *images) pullIndexes(ctx context.Context, c *remote.Client, repository string, img *remote.Image, a remote.Access) (found int, err error) {
	referrers, err := c.ReferrersIn(ctx, repository, img.Digest, indexArtifact, a)
	if err != nil {
		return 0, err
	}
	layers := map[string]remote.Layer{}
	for _, l := range img.Layers {
		layers[l.Digest] = l
	}
	var errs []error
	// The newest is the last where there is an order.
	for i := len(referrers) - 1; i >= max(0, len(referrers)-maxIndexSources) && found == 0; i-- {
		artifact, err := c.Artifact(ctx, repository, referrers[i], a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, blob := range artifact.Blobs {
			l, ok := layers[blob.Annotations[indexLayer]]
			if !ok || blob.MediaType != indexBlob {
				continue
			}
			wg.Go(func() {
				err := im.importIndex(ctx, c, artifact.Reference, blob, l, a)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					found++
				}
				errs = append(errs, err)
			})
		}
		wg.Wait()
	}
	return found, errors.Join(errs...)
}

func (im *images) importIndex(ctx context.Context, c *remote.Client, reference string, blob, l remote.Layer, a remote.Access) error {
	packed, err := c.ReadBlob(ctx, reference, blob, a, maxIndexBlob)
	if err != nil {
		return err
	}
	return layer.Import(im.home.Cache("layers"), l.Digest, l.Size, l.DiffID, bytes.NewReader(packed))
}

// pushIndexes publishes the indexes of img's layers to repository and returns the artifact's digest and how many there are.
func (im *images) pushIndexes(ctx context.Context, repository string, img *remote.Image, a api.Access) (digest string, n int, err error) {
	client, access, err := im.registries.client(a)
	if err != nil {
		return "", 0, err
	}
	dir := im.home.Cache("layers")
	var blobs []remote.Content
	unindexed := 0
	for _, l := range img.Layers {
		packed, err := layer.Export(dir, l.Digest)
		if errors.Is(err, fs.ErrNotExist) {
			if !layer.Lazy(dir, descriptor(l)) {
				unindexed++ // else it has a TOC of its own
			}
			continue
		}
		if err != nil {
			return "", 0, err
		}
		blobs = append(blobs, remote.NewContent(indexBlob, packed, map[string]string{indexLayer: l.Digest}))
	}
	if len(blobs) == 0 && unindexed > 0 {
		return "", 0, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf(
			"%s: there is no index of its layers yet: make them with msb-fs index build %s", img.Reference, img.Reference)}
	}
	if len(blobs) == 0 {
		return "", 0, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf(
			"%s needs no index: its layers bring a table of contents of their own", img.Reference)}
	}
	subject := remote.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Manifest))}
	digest, err = client.PushArtifact(ctx, repository, subject, indexArtifact, blobs, nil, access)
	return digest, len(blobs), err
}

func (d *daemon) postIndexPush(w http.ResponseWriter, r *http.Request) error {
	var req api.IndexRequest
	if err := read(r, &req); err != nil {
		return err
	}
	img, err := d.images.resolve(r.Context(), req.ImageRequest)
	if err != nil {
		return err
	}
	config, err := d.images.registries.config()
	if err != nil {
		return err
	}
	to := config.IndexPushTo
	if req.Repository != "" {
		to = []string{req.Repository}
	} else if len(to) == 0 {
		to = []string{remote.Repository(img.Reference)}
	}
	out := []api.PushedIndex{}
	for _, repository := range to {
		digest, n, err := d.images.pushIndexes(r.Context(), repository, img, req.Access)
		if err != nil {
			return err
		}
		out = append(out, api.PushedIndex{Repository: repository, Digest: digest, Layers: n})
	}
	return write(w, out)
}

func (d *daemon) postIndexPull(w http.ResponseWriter, r *http.Request) error {
	var req api.IndexRequest
	if err := read(r, &req); err != nil {
		return err
	}
	img, err := d.images.resolve(r.Context(), req.ImageRequest)
	if err != nil {
		return err
	}
	var n int
	if req.Repository == "" {
		n, err = d.images.findIndexes(r.Context(), img, req.Access)
	} else {
		client, access, cerr := d.images.registries.client(req.Access)
		if cerr != nil {
			return cerr
		}
		n, err = d.images.pullIndexes(r.Context(), client, req.Repository, img, access)
	}
	if n == 0 && err == nil {
		err = &api.Error{Code: api.CodeNotFound, Message: "nobody has published an index of " + img.Reference}
	}
	if n == 0 {
		return err
	}
	return write(w, api.PulledIndex{Layers: n})
}
