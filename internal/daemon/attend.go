package daemon

import (
	"context"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/layer"
)

// When the rest of an image comes. While somebody starts something in it, the link carries what that asks for, what it
// will probably ask for, and nothing else: on a slow link the rest would come at the cost of the start. A start is over when its
// launcher says so, or when nobody has asked for anything new for a while; from then on the link is never idle
// before everything is here. What is asked for overtakes the rest at any time.
const (
	attendEvery = 250 * time.Millisecond
	mountQuiet  = 2 * time.Second
	// A sandbox's launcher says when it has started, which is when it first prints something. One that never prints is
	// waited for longer: it may be computing, and an emulated processor computes slowly.
	sandboxQuiet = 15 * time.Second
	// A layer of which half has been asked for is fetched whole, in large requests, before anything else that nobody has
	// asked for: most of it will be read, and at worst twice as much is fetched as was needed.
	wholeShare = 2
)

// Values of config.json's cache.background.
const (
	backgroundAuto  = "auto"
	backgroundEager = "eager"
	backgroundOff   = "off"
)

// background is config.json's cache.background. Whether it can be read concerns others.
func (d *daemon) background() string {
	config, err := d.images.registries.config()
	if err != nil || config.Background == "" {
		return backgroundAuto
	}
	return config.Background
}

// attend returns when nobody has asked o for anything new for as long as quiet, counted from now on, or when ctx ends. In
// the meantime it has layers fetched whole of which much has been asked for, or all of them if that is wanted.
func (d *daemon) attend(ctx context.Context, o *openImage, quiet time.Duration) {
	if d.background() == backgroundEager {
		d.completer.image(o)
	}
	since := time.Now()
	tick := time.NewTicker(attendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if min(o.tree.Quiet(), time.Since(since)) >= quiet {
			return
		}
		if o.tree.Quiet() < 2*attendEvery && d.background() != backgroundOff {
			d.completer.whole(o)
		}
	}
}

// whole has those layers of o fetched whole of which much has been read.
func (c *completer) whole(o *openImage) {
	touched := o.tree.Touched()
	much := make(map[*openLayer]bool, len(o.layers))
	for i, l := range o.layers {
		if mode, _ := l.Mode(); mode != layer.Full && touched[i]*wholeShare >= l.blob.Size() {
			much[l] = true
		}
	}
	if len(much) > 0 {
		c.start(o, priority.Predicted, func(l *openLayer) bool { return much[l] })
	}
}

// rest has what is missing of o fetched, unless nobody wants that.
func (d *daemon) rest(o *openImage) {
	if d.background() != backgroundOff {
		d.completer.image(o)
	}
}

// attendMount looks after a mount's first use, in a task: it brings what that will probably need, remembers what it needed,
// and then has the rest fetched. What it returns ends that and waits for it.
func (d *daemon) attendMount(m *mount) (stop func()) {
	d.images.use(m.image)
	d.completer.streams(m.image)
	ctx, cancel := context.WithCancel(d.tasks.ctx)
	ended := make(chan struct{})
	d.tasks.run(m.Reference, func(context.Context) {
		defer close(ended)
		prefetched := make(chan struct{})
		st, err := newMountStart(m.image, profiles{d.images.pins.db})
		go func() {
			defer close(prefetched)
			err := recovered(d.Log, func() error {
				if err != nil {
					return err
				}
				return st.prefetch(ctx)
			})
			if err != nil && ctx.Err() == nil {
				d.Log.Warn("prefetch", "mount", m.Dir, "err", err)
			}
		}()
		d.attend(ctx, m.image, mountQuiet)
		if st != nil && d.images.exclusive(m.image) {
			if err := st.learn(); err != nil {
				d.Log.Warn("learn start-up profile", "mount", m.Dir, "err", err)
			}
		}
		d.rest(m.image)
		<-prefetched
	})
	return func() {
		cancel()
		<-ended
	}
}
