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
	profileBlob     = "application/vnd.microsandbox.profile.v1+zstd"
	maxProfileBlob  = 16 << 20  // bytes, compressed
	maxIndexBlob    = 256 << 20 // bytes, compressed
	maxIndexSources = 8         // artifacts that are looked at
	indexWorthwhile = 1 << 20   // bytes of a layer; a smaller one is streamed sooner than asked about
)

// indexes is what was found of an image's indexes.
type indexes struct {
	layers  int  // that have one now
	profile bool // start-up profiles have come as well
}

func (x indexes) none() bool { return x.layers == 0 && !x.profile }

// findIndexes brings the indexes of img's layers, as far as they are needed and somebody has published them: in the
// repositories of config.json's index.pull_from, or beside the image. That there is none is no error.
func (im *images) findIndexes(ctx context.Context, img *remote.Image, a api.Access) (found indexes, err error) {
	client, access, err := im.registries.client(a)
	if err != nil {
		return found, err
	}
	config, err := im.registries.config()
	if err != nil {
		return found, err
	}
	var errs []error
	for _, repository := range append(slices.Clone(config.IndexPullFrom), remote.Repository(img.Reference)) {
		found, err = im.pullIndexes(ctx, client, repository, img, access)
		errs = append(errs, err)
		if !found.none() {
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
	if found, err := im.findIndexes(ctx, img, a); found.none() && err != nil {
		im.log.Debug("no published index", "image", img.Reference, "err", err)
	}
}

// pullIndexes imports the indexes that repository has for img's layers, ours or else SOCI's.
func (im *images) pullIndexes(ctx context.Context, c *remote.Client, repository string, img *remote.Image, a remote.Access) (found indexes, err error) {
	all, err := c.ReferrersIn(ctx, repository, img.Digest, "", a)
	if err != nil {
		return found, err
	}
	p := &indexPull{images: im, client: c, repository: repository, image: img, access: a, layers: map[string]remote.Layer{}}
	for _, l := range img.Layers {
		p.layers[l.Digest] = l
	}
	for _, d := range newest(all, indexArtifact) {
		if p.artifact(ctx, d, indexArtifact, p.ours); !p.found.none() {
			return p.found, nil
		}
	}
	for _, d := range append(sociOf(img), newest(all, sociArtifactV1, sociArtifactV2, "")...) {
		if p.artifact(ctx, d, "", p.soci); !p.found.none() {
			return p.found, nil
		}
	}
	return p.found, errors.Join(p.errs...)
}

// newest are those of all that are of one of types, the newest first: it is the last where there is an order.
func newest(all []remote.Descriptor, types ...string) []remote.Descriptor {
	var out []remote.Descriptor
	for _, d := range slices.Backward(all) {
		if slices.Contains(types, d.ArtifactType) && len(out) < maxIndexSources {
			out = append(out, d)
		}
	}
	return out
}

// indexPull is one look for the indexes of an image in a repository.
type indexPull struct {
	images     *images
	client     *remote.Client
	repository string
	image      *remote.Image
	access     remote.Access
	layers     map[string]remote.Layer // of image, by digest

	mu    sync.Mutex
	found indexes // guarded by mu
	errs  []error // guarded by mu
}

// artifact hands all blobs of the artifact d to take, at the same time. want is its type, or "".
func (p *indexPull) artifact(ctx context.Context, d remote.Descriptor, want string, take func(context.Context, *remote.Artifact, remote.Layer) error) {
	artifact, err := p.client.Artifact(ctx, p.repository, d, p.access)
	if err != nil {
		p.errs = append(p.errs, err)
		return
	}
	if want != "" && artifact.Type != want {
		return
	}
	var wg sync.WaitGroup
	for _, blob := range artifact.Blobs {
		wg.Go(func() {
			if err := take(ctx, artifact, blob); err != nil {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.errs = append(p.errs, err)
			}
		})
	}
	wg.Wait()
}

// ours takes a blob of an artifact of ours: a layer's index, or the image's start-up profiles.
func (p *indexPull) ours(ctx context.Context, artifact *remote.Artifact, blob remote.Layer) error {
	l, ok := p.layers[blob.Annotations[indexLayer]]
	switch {
	case blob.MediaType == profileBlob:
		packed, err := p.client.ReadBlob(ctx, artifact.Reference, blob, p.access, maxProfileBlob)
		if err != nil {
			return err
		}
		if err := (profiles{p.images.pins.db}).adopt(p.image.Digest, packed); err != nil {
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.found.profile = true
	case ok && blob.MediaType == indexBlob:
		packed, err := p.client.ReadBlob(ctx, artifact.Reference, blob, p.access, maxIndexBlob)
		if err != nil {
			return err
		}
		return p.imported(layer.Import(p.images.home.Cache("layers"), l.Digest, l.Size, l.DiffID, bytes.NewReader(packed)))
	}
	return nil
}

// imported counts a layer whose index was imported, unless err.
func (p *indexPull) imported(err error) error {
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.found.layers++
	}
	return err
}

// pushIndexes publishes the indexes of img's layers, and its start-up profiles, to repository and returns the artifact's digest and how many there are.
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
	n = len(blobs)
	profile, err := profiles{im.pins.db}.export(img.Digest)
	if err != nil {
		return "", 0, err
	}
	if profile != nil {
		blobs = append(blobs, remote.NewContent(profileBlob, profile, nil))
	}
	if len(blobs) == 0 {
		return "", 0, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf(
			"%s needs no index: its layers bring a table of contents of their own", img.Reference)}
	}
	subject := remote.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Manifest))}
	digest, err = client.PushArtifact(ctx, repository, subject, indexArtifact, blobs, nil, access)
	return digest, n, err
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
	var found indexes
	if req.Repository == "" {
		found, err = d.images.findIndexes(r.Context(), img, req.Access)
	} else {
		client, access, cerr := d.images.registries.client(req.Access)
		if cerr != nil {
			return cerr
		}
		found, err = d.images.pullIndexes(r.Context(), client, req.Repository, img, access)
	}
	if found.none() && err == nil {
		err = &api.Error{Code: api.CodeNotFound, Message: "nobody has published an index of " + img.Reference}
	}
	if found.none() {
		return err
	}
	return write(w, api.PulledIndex{Layers: found.layers})
}
