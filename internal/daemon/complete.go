package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/layer"
)

// How a layer that cannot be completed is tried again: an image in use may need the rest any time, but nobody waits for it.
const (
	completeRetryMin = time.Second
	completeRetryMax = time.Minute
	completeTries    = 8
)

// completer brings the rest of open images into the cache while nobody waits for it.
type completer struct {
	images *images
	tasks  *tasks
	log    *slog.Logger
}

// image fetches everything of o that is missing, in a task that holds o open until then. It does nothing for what is being
// fetched already, or once nobody uses o.
func (c *completer) image(o *openImage) {
	c.start(o, priority.Background, func(*openLayer) bool { return true })
}

// streams waits, in a task that holds o open until then, for the layers of o that stream: what they brought would be lost
// if they were closed half way.
func (c *completer) streams(o *openImage) {
	c.start(o, priority.Background, func(l *openLayer) bool { mode, _ := l.Mode(); return mode == layer.Streaming })
}

// start fetches the layers of o that are wanted and that nobody fetches yet.
func (c *completer) start(o *openImage, class priority.Class, wanted func(*openLayer) bool) {
	var layers []*openLayer
	for _, l := range o.layers {
		if wanted(l) {
			layers = append(layers, l)
		}
	}
	if layers = c.images.beginCompleting(o, layers); len(layers) == 0 {
		return
	}
	c.tasks.run(o.Reference, func(ctx context.Context) {
		for _, err := range c.all(priority.With(ctx, class), layers, completeTries) {
			if err != nil && ctx.Err() == nil {
				c.log.Warn("image stays incomplete", "image", o.Reference, "err", err)
			}
		}
		if err := c.images.endCompleting(o, layers); err != nil {
			c.log.Error("close image", "image", o.Reference, "err", err)
		}
	})
}

// all completes all layers at once, each in so many tries, and returns the error of each.
func (c *completer) all(ctx context.Context, layers []*openLayer, tries int) []error {
	if priority.From(ctx) == priority.OnDemand {
		ctx = priority.With(ctx, priority.Background)
	}
	errs := make([]error, len(layers))
	var wg sync.WaitGroup
	for i, l := range layers {
		wg.Go(func() {
			errs[i] = recovered(c.log, func() error { return completeLayer(ctx, l, tries) })
		})
	}
	wg.Wait()
	return errs
}

func completeLayer(ctx context.Context, l *openLayer, tries int) error {
	wait := completeRetryMin
	for try := 1; ; try++ {
		err := l.Complete(ctx)
		if kept, ok := l.blob.(*keptBlob); ok && err == nil && l.unkeep != nil {
			kept.discard() // its chunks are in the cache
		}
		if err == nil || errors.Is(err, layer.ErrCorrupt) || try == tries || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		wait = min(2*wait, completeRetryMax)
	}
}
