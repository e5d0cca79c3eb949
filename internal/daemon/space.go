package daemon

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/layer"
	"github.com/microsandbox/msb-fs/remote"
)

// deleteImage forgets a reference, and what only it needs.
func (d *daemon) deleteImage(w http.ResponseWriter, r *http.Request) error {
	ref, err := remote.Normalize(r.URL.Query().Get("ref"))
	if err != nil {
		return err
	}
	platform := r.URL.Query().Get("platform")
	img, _, err := d.images.pins.get(ref, platform)
	if err != nil {
		return err
	}
	if img == nil {
		return &api.Error{Code: api.CodeNotCached, Message: "image not cached: " + r.URL.Query().Get("ref")}
	}
	if d.sandboxPins()[img.Digest] {
		return &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("a sandbox is made of %s: msb-launch ls -a lists them", ref)}
	}
	freed, err := d.images.forget(r.Context(), img, ref, platform)
	if err != nil {
		return err
	}
	return write(w, api.Freed{Images: []api.Removed{{Reference: ref, Platform: platform}}, Bytes: freed})
}

// forget removes ref, and the data of img that no other reference, sandbox or open image needs.
func (im *images) forget(ctx context.Context, img *remote.Image, ref, platform string) (freed int64, err error) {
	if err := im.lockSpace(ctx); err != nil {
		return 0, err
	}
	defer im.space.Unlock()
	if im.byDigest()[img.Digest] != nil {
		return 0, &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("%s is in use: unmount it and stop its sandboxes first", ref)}
	}
	before := im.used()
	if err := im.pins.remove(ref, platform); err != nil {
		return 0, err
	}
	if _, err := im.collect(); err != nil {
		return 0, err
	}
	return before - im.used(), nil
}

// lockSpaceEvery is how often lockSpace tries.
const lockSpaceEvery = 10 * time.Millisecond

// lockSpace takes im.space. Unlike Lock it does not hold up those who come to open an image meanwhile: whoever is opening
// one now may be waiting for a slow registry.
func (im *images) lockSpace(ctx context.Context) error {
	for !im.space.TryLock() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("images are being opened all the time: %w", ctx.Err())
		case <-time.After(lockSpaceEvery):
		}
	}
	return nil
}

// used is the disk space of what images consist of, bytes.
func (im *images) used() int64 {
	blobs, err := dirBytes(im.home.Cache("blobs"))
	if err != nil {
		im.log.Warn("measure blobs", "err", err)
	}
	return im.cache.Stats().DiskBytes + blobs
}

// collect removes the blobs, indexes, chunks and trees that no reference leads to any more and that are not open. It returns how
// many layers went. The caller has im.space.
func (im *images) collect() (layers int, err error) {
	pinned, err := im.pins.all()
	if err != nil {
		return 0, err
	}
	keepLayers, keepTrees := map[string]bool{}, map[string]bool{}
	keep := func(img *remote.Image) {
		keepTrees[img.Digest] = true
		for _, l := range img.Layers {
			keepLayers[l.Digest] = true
		}
	}
	for _, p := range pinned {
		if p.Image != nil {
			keep(p.Image)
		}
	}
	for _, o := range im.byDigest() {
		keep(o.Image)
	}
	trees, err := cached(im.home.Cache("trees"), keepTrees)
	if err != nil {
		return 0, err
	}
	for _, t := range trees {
		if err := os.Remove(im.treeFile(t)); err != nil {
			return 0, fmt.Errorf("remove tree: %w", err)
		}
	}
	blobs, err := cached(im.home.Cache("blobs"), keepLayers)
	if err != nil {
		return 0, err
	}
	for _, digest := range blobs {
		if err := os.Remove(im.blobFile(digest)); err != nil {
			return 0, fmt.Errorf("remove blob: %w", err)
		}
	}
	partial, err := cached(im.partials.dir, keepLayers)
	if err != nil {
		return 0, err
	}
	for _, digest := range partial {
		if err := im.partials.remove(digest); err != nil {
			return 0, err
		}
	}
	gone, err := cached(im.home.Cache("layers"), keepLayers)
	if err != nil {
		return 0, err
	}
	for _, digest := range gone {
		if err := layer.Remove(im.home.Cache("layers"), digest, im.cache); err != nil {
			return 0, err
		}
	}
	return len(gone), nil
}

// cached returns the digests that files in dir are named by, but for those in keep.
func cached(dir string, keep map[string]bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list cache: %w", err)
	}
	seen := map[string]bool{}
	var out []string
	for _, e := range entries {
		hex, _, _ := strings.Cut(e.Name(), ".")
		digest := "sha256:" + hex
		if len(hex) == 64 && !keep[digest] && !seen[digest] {
			seen[digest] = true
			out = append(out, digest)
		}
	}
	return out, nil
}

// postPrune removes all that no mount, sandbox or reference needs; the references of images that are not in use too, if
// all is asked for.
func (d *daemon) postPrune(w http.ResponseWriter, r *http.Request) error {
	var req api.PruneRequest
	if err := read(r, &req); err != nil {
		return err
	}
	out := api.Freed{Images: []api.Removed{}}
	im := d.images
	if err := im.lockSpace(r.Context()); err != nil {
		return err
	}
	defer im.space.Unlock()
	before := im.used()
	if req.All {
		pinned, err := im.pins.all()
		if err != nil {
			return err
		}
		open, kept := im.byDigest(), d.sandboxPins()
		for _, p := range pinned {
			if open[p.Digest] != nil || kept[p.Digest] {
				continue
			}
			if err := im.pins.remove(p.Reference, p.Platform); err != nil {
				return err
			}
			out.Images = append(out.Images, api.Removed{Reference: p.Reference, Platform: p.Platform})
		}
	}
	if _, err := im.collect(); err != nil {
		return err
	}
	if req.Chunks {
		if _, err := d.cache.Evict(r.Context(), 0); err != nil {
			return err
		}
	}
	out.Bytes = before - im.used()
	return write(w, out)
}

// sandboxPins are the manifest digests that sandboxes on disk are pinned to.
func (d *daemon) sandboxPins() map[string]bool {
	pins := map[string]bool{}
	configs, _ := filepath.Glob(filepath.Join(d.home.Sandboxes(), "*", "config.json"))
	for _, path := range configs {
		if digest := pinOf(path); digest != "" {
			pins[digest] = true
		}
	}
	return pins
}

func (d *daemon) getUsage(w http.ResponseWriter, r *http.Request) error {
	u, err := d.cache.Usage(r.Context())
	if err != nil {
		return err
	}
	df := api.DiskUsage{Chunks: u.Chunks, ChunkBytes: u.Bytes, InUse: u.InUse, DiskBytes: u.DiskBytes, Limit: u.Limit, Free: u.Free}
	if df.Blobs, err = dirBytes(d.home.Cache("blobs")); err != nil {
		return err
	}
	partial, err := dirBytes(d.images.partials.dir)
	if err != nil {
		return err
	}
	df.Blobs += partial
	if df.Indexes, err = dirBytes(d.home.Cache("layers")); err != nil {
		return err
	}
	if df.Trees, err = dirBytes(d.home.Cache("trees")); err != nil {
		return err
	}
	if df.Database, err = dirBytes(d.home.DB()); err != nil {
		return err
	}
	if df.Sandboxes, err = dirBytes(d.home.Sandboxes()); err != nil {
		return err
	}
	return write(w, df)
}

func (d *daemon) postVerify(w http.ResponseWriter, r *http.Request) error {
	v, err := d.cache.Verify(r.Context())
	if err != nil {
		return err
	}
	blobs, err := d.images.verifyBlobs(r.Context())
	if err != nil {
		return err
	}
	return write(w, api.Verified{Chunks: v.Chunks, Bytes: v.Bytes + blobs.Bytes, Wrong: v.Wrong + blobs.Wrong})
}
