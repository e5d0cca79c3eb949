package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/layer"
	"github.com/microsandbox/msb-fs/remote"
)

// progressEvery is how often a pull tells how far it is.
const progressEvery = 200 * time.Millisecond

func (d *daemon) postPull(w http.ResponseWriter, r *http.Request) error {
	var req api.PullRequest
	if err := read(r, &req); err != nil {
		return err
	}
	// It is somebody's wish, but what a running program waits for goes first.
	ctx, out := priority.With(r.Context(), priority.Background), newEvents(w)
	img, err := d.images.resolve(r.Context(), req.ImageRequest)
	if err != nil {
		return err
	}
	if req.Force {
		if err := d.images.drop(ctx, img); err != nil {
			return err
		}
	}
	desc := describeImage(img, nil)
	out.send(api.Event{Name: api.EventResolved, Image: &desc})
	for try := 1; ; try++ {
		errs := d.pull(ctx, img, req, out)
		err := firstError(errs)
		if err == nil {
			return nil
		}
		// What came from a mirror, or was altered on the way, may be right when it is fetched afresh.
		again, derr := d.images.dropCorrupt(ctx, img, errs)
		if !again || derr != nil || try == pullTries {
			out.fail(fmt.Errorf("pull %s: %w", img.Reference, errors.Join(err, derr)))
			return nil
		}
		d.Log.Warn("pull once more", "image", img.Reference, "err", err)
	}
}

// pullTries is how often an image is pulled in all when a layer comes corrupt.
const pullTries = 2

// pull brings img into the cache, or with req.Lazy only opens it, and tells out how far it is. It returns the error of each
// layer.
func (d *daemon) pull(ctx context.Context, img *remote.Image, req api.PullRequest, out *events) []error {
	o, _, err := d.images.acquire(ctx, img, req.Access)
	if err != nil {
		return []error{err}
	}
	defer d.release(o)
	out.send(api.Event{Name: api.EventIndexed, Layers: o.describe()})
	if req.Lazy {
		d.completer.streams(o)
		return nil
	}
	done := make(chan []error, 1)
	go func() { done <- d.completer.pull(ctx, o) }()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			out.send(api.Event{Name: api.EventProgress, Layers: o.describe()})
		case errs := <-done:
			if firstError(errs) == nil {
				desc := describeImage(img, o)
				out.send(api.Event{Name: api.EventComplete, Image: &desc})
			}
			return errs
		}
	}
}

// pullChecks is how many layers are held against their digests at a time: each takes some 15 MB.
const pullChecks = 4

// pull brings every layer of o into the cache and holds each against the blob's digest and the diffID. A layer that is
// in the cache already, chunk by chunk, is left as it is. It returns the error of each.
func (c *completer) pull(ctx context.Context, o *openImage) []error {
	ctx = priority.With(ctx, priority.Background)
	errs := make([]error, len(o.layers))
	checks := semaphore.NewWeighted(pullChecks)
	var wg sync.WaitGroup
	for i, l := range o.layers {
		wg.Go(func() {
			kept, ok := l.blob.(*keptBlob)
			errs[i] = recovered(c.log, func() error {
				mode, _ := l.Mode()
				if ok && !l.Trusted() && mode == layer.LazyIndex {
					kept.keep() // to check somebody's index it is read once, in order
				}
				if !ok || mode != layer.LazyTOC {
					return completeLayer(ctx, l, 1)
				}
				if err := checks.Acquire(ctx, 1); err != nil {
					return err
				}
				defer checks.Release(1)
				return l.pullWhole(ctx, kept)
			})
			if ok && errors.Is(errs[i], layer.ErrCorrupt) {
				kept.Distrust(0, kept.Size()) // who comes again asks elsewhere first
			}
		})
	}
	wg.Wait()
	return errs
}

// pullWhole brings in a layer whose TOC vouches for its chunks, one by one, but not for the layer: its blob is read in order
// beside, and each byte fetched once for both.
func (l *openLayer) pullWhole(ctx context.Context, blob *keptBlob) error {
	defer blob.lead()()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.check(ctx, blob) })
	g.Go(func() error { return completeLayer(ctx, l, 1) })
	err := g.Wait()
	if err == nil || errors.Is(err, layer.ErrCorrupt) {
		blob.discard()
	}
	return err
}

// check reads l's blob from its start to its end and holds it against its digest and its diffID.
func (l *openLayer) check(ctx context.Context, blob *keptBlob) error {
	d := l.desc
	d.Annotations = nil // whatever its TOC says
	s, err := layer.Open(ctx, d, inOrder{blob}, layer.Options{})
	if err != nil {
		return err
	}
	return errors.Join(s.Complete(ctx), s.Close())
}

// dropCorrupt removes what is cached of those layers of img that have turned out corrupt, by their errors; any is false when there
// are none, and it is of no use to open img afresh.
func (im *images) dropCorrupt(ctx context.Context, img *remote.Image, errs []error) (any bool, err error) {
	bad := *img
	bad.Layers = nil
	for i, err := range errs {
		if errors.Is(err, layer.ErrFalseIndex) {
			any = true // the layer is sound, and has an index of its own by now
			continue
		}
		if errors.Is(err, layer.ErrCorrupt) && i < len(img.Layers) {
			bad.Layers = append(bad.Layers, img.Layers[i])
		}
	}
	if len(bad.Layers) == 0 {
		return any, nil
	}
	return true, im.drop(ctx, &bad)
}
