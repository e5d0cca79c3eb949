package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/layer"
	"github.com/microsandbox/msb-fs/remote"
)

// ahead asks for what the opening of an image, and the start in it, will read, from the moment on at which its manifest is known: the
// layers' tables of contents, published indexes and, where a profile says which, the first runs of blobs that the program needs. All
// of them are on their way together, with the image's config. It is closed in the end.
type ahead struct {
	images *images
	access api.Access
	starts bool     // something, whose profile is kept under
	key    []string // see start.key

	begun  bool
	known  bool             // a profile's ranges have been asked for
	unread []bool           // layers of which nothing can be here yet, as there is no index of them
	tocs   map[string]int64 // where TOCs begin, by blob digest, as a profile has it; immutable once begun
	sought sync.WaitGroup   // the look for published indexes

	mu    sync.Mutex
	blobs map[string]*remote.Blob // guarded by mu; that nobody has taken yet, by digest
}

// ahead returns what looks ahead of the opening of an image.
func (im *images) ahead(a api.Access) *ahead { return &ahead{images: im, access: a} }

// start returns what looks ahead of a start in an image, too, whose profile is kept under key.
func (im *images) aheadOf(key []string, a api.Access) *ahead {
	return &ahead{images: im, access: a, starts: true, key: key}
}

// begin asks for everything, once. img may be without its config yet.
func (a *ahead) begin(ctx context.Context, img *remote.Image) {
	if a.begun {
		return
	}
	a.begun = true
	im := a.images
	if im.isOpen(img) {
		return
	}
	client, access, err := im.registries.client(a.access)
	if err != nil {
		return // whoever opens the image will hear of it
	}
	rec := a.profile(img)
	a.blobs, a.tocs = map[string]*remote.Blob{}, map[string]int64{}
	dir := im.home.Cache("layers")
	a.unread = make([]bool, len(img.Layers))
	for i, l := range img.Layers {
		if _, twice := a.blobs[l.Digest]; twice || im.layerOpen(l.Digest) || im.local(l) {
			continue
		}
		if i < len(rec.TOCs) {
			a.tocs[l.Digest] = rec.TOCs[i]
		}
		blob := client.Blob(img, l, access)
		a.blobs[l.Digest] = blob
		off, n := layer.Opening(descriptor(l), a.options(l.Digest, blob))
		a.unread[i] = n > 0 || !layer.Lazy(dir, descriptor(l))
		if n > 0 {
			blob.Expect(off, n)
		}
	}
	a.expect(img, rec.Ranges)
	a.sought.Go(func() {
		_ = recovered(im.log, func() error {
			im.space.RLock()
			defer im.space.RUnlock()
			im.seekIndexes(ctx, img, a.access)
			return nil
		})
	})
}

// profile is that of the start; empty when there is none, or it is not known yet what starts.
func (a *ahead) profile(img *remote.Image) (rec profileRecord) {
	if !a.starts {
		return rec
	}
	all := profiles{a.images.pins.db}
	rec, err := all.record(img.Digest, a.key)
	if err == nil && len(rec.Touches) == 0 && a.key == nil && img.Config != nil {
		if st, err := newMountStart(&openImage{Image: img}, all); err == nil {
			rec, _ = all.record(img.Digest, st.argv)
		}
	}
	return rec // what cannot be read is not replayed either
}

// wait waits for published indexes, and asks for what profiles that came with them say.
func (a *ahead) wait(img *remote.Image) {
	a.sought.Wait()
	if !a.known && a.unread != nil {
		a.expect(img, a.profile(img).Ranges)
	}
}

// expect asks for ranges of blobs, in order, as long as there is room for them in memory.
func (a *ahead) expect(img *remote.Image, ranges []fs.Range) {
	a.known = len(ranges) > 0
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range ranges {
		if r.Layer < 0 || r.Layer >= len(img.Layers) || !a.unread[r.Layer] {
			continue
		}
		if blob := a.blobs[img.Layers[r.Layer].Digest]; blob != nil && r.To <= blob.Size() && !blob.Expect(r.From, r.To-r.From) {
			return
		}
	}
}

// tailRate is the bandwidth that a registry is thought to have before anything is known of it, bytes per second: a tail that passes
// within a round trip is worth reading for the chance that it saves one.
const tailRate = 25 << 20

// options are how a layer's TOC is found.
func (a *ahead) options(digest string, blob *remote.Blob) layer.Options {
	o := layer.Options{Dir: a.images.home.Cache("layers"), TOC: a.tocs[digest]}
	if d := blob.Latency(); d > 0 {
		o.Tail = max(1, int64(min(d, time.Second).Seconds()*tailRate))
	}
	return o
}

// open is blob i of img, and how its layer is to be opened. The caller closes the blob.
func (a *ahead) open(c *remote.Client, img *remote.Image, l remote.Layer, access remote.Access) (layerBlob, layer.Options, error) {
	if b, err := a.images.localBlob(l); b != nil || err != nil {
		return b, layer.Options{Dir: a.images.home.Cache("layers")}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.blobs[l.Digest]
	if delete(a.blobs, l.Digest); b == nil {
		b = c.Blob(img, l, access)
	}
	return &keptBlob{Blob: b, partials: &a.images.partials}, a.options(l.Digest, b), nil
}

// close gives up what nobody has taken.
func (a *ahead) close() error {
	a.sought.Wait()
	var errs []error
	for _, b := range a.blobs {
		errs = append(errs, b.Close())
	}
	a.blobs = nil
	return errors.Join(errs...)
}
