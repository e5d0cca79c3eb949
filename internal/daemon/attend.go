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
	// A layer of which three quarters have been asked for is fetched whole, in large requests, whenever nobody waits for anything:
	// most of it will be read, and at worst a third more is fetched than was needed.
	wholeOf, wholeIn = 3, 4
	// So is one whose reads have cost so many times the time in round trips that all of the rest would take on the wire: on a long
	// and fat link whole layers come sooner than a start's reads, one after the other.
	wholeTimes  = 2
	leastMisses = 8 // that say something about the next ones
	// longLink is the round trip from which on waiting is what a start is made of. On a shorter link the processor, which inflates what comes,
	// or the bandwidth are, and neither has anything to spare for what is not needed.
	longLink = 40 * time.Millisecond
	// On a link that is neither long nor short only a start that has waited for so many chunks has so many more to wait for that guessing pays.
	shortLink  = 5 * time.Millisecond
	manyMisses = 64
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

// whole has those layers of o fetched whole of which much has been read, or of which that is the quickest way to have what will be.
func (c *completer) whole(o *openImage) {
	touched, misses := o.tree.Touched(), o.tree.Misses()
	much := make(map[*openLayer]bool, len(o.layers))
	slow := make(map[*openLayer]bool, len(o.layers))
	for i, l := range o.layers {
		if mode, _ := l.Mode(); mode == layer.Full {
			continue
		}
		slow[l] = l.slowerByReads(misses[i])
		much[l] = touched[i]*wholeIn >= l.blob.Size()*wholeOf
	}
	c.start(o, priority.Predicted, func(l *openLayer) bool { return slow[l] })
	c.start(o, priority.Background, func(l *openLayer) bool { return much[l] })
}

// slowerByReads tells whether so many reads of l, each of which had to be waited for, have taken longer than fetching the rest of l would.
func (l *openLayer) slowerByReads(misses int64) bool {
	kept, ok := l.blob.(*keptBlob)
	if !ok || misses < leastMisses {
		return false
	}
	have, all := l.Progress()
	bandwidth := kept.Bandwidth()
	return bandwidth > 0 && kept.Latency() >= longLink && float64(misses)*kept.Latency().Seconds() >= wholeTimes*float64(all-have)/bandwidth
}

// guesses has o's tree fetch what lies beside the chunks that a start waits for, of which nothing is known.
func (o *openImage) guesses() {
	o.tree.Guess(func(i int) int64 {
		kept, ok := o.layers[i].blob.(*keptBlob)
		if !ok || kept.Latency() < shortLink {
			return 0
		}
		if kept.Latency() < longLink && sum(o.tree.Misses()) < manyMisses {
			return 0
		}
		bandwidth := kept.Bandwidth()
		if bandwidth == 0 {
			bandwidth = tailRate
		}
		return int64(min(bandwidth*kept.Latency().Seconds(), maxGuess))
	})
}

func sum(ns []int64) (n int64) {
	for _, v := range ns {
		n += v
	}
	return n
}

// maxGuess is the most that is fetched beside one chunk, bytes of a blob.
const maxGuess = 4 << 20

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
			if err := m.learn(st); err != nil {
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
