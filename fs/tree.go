package fs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options are a tree's settings; the zero value works.
type Options struct {
	// File is where the sealed tree is kept. It is used when it is there and of this version, written when all layers
	// are complete otherwise, and may be lost at any time. It must be of these layers, so its name should hold the
	// manifest's digest. Empty: the sealed tree is kept in memory.
	File string
}

// Tree is a merged image. Its methods may be called concurrently. Every error they return is one that Errno knows; a
// method that has to wait returns ctx's error when ctx ends first.
type Tree struct {
	layers []Layer
	cache  Cache
	file   string

	flat   atomic.Pointer[flat] // the sealed tree, nil while growing
	grow   *grow                // nil when the tree was sealed from the start
	sealed chan struct{}        // closed once flat is set
	failed atomic.Pointer[error]

	ctx    context.Context // of the tree's own goroutines, ended by Close
	cancel context.CancelFunc
	work   sync.WaitGroup
	ending sync.Mutex // held while ctx is ended, and by begin

	fetches sync.Pool // of *fetch
	stats   stats
	ahead   ahead
	record  recorder
	demand  demand
	guesses guesses
}

// errClosed is what waits end with when the tree is closed under them.
var errClosed = fmt.Errorf("the tree is closed: %w", syscall.ESHUTDOWN)

// New returns the tree of an image's layers, bottom first, whose chunks are in c. It returns at once, also while layers
// stream; ctx is only for opening o.File. The layers and the cache stay the caller's and must outlive the tree.
func New(ctx context.Context, layers []Layer, c Cache, o Options) (*Tree, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(layers) > MaxLayers {
		return nil, fmt.Errorf("the image has %d layers: at most %d can be shown", len(layers), MaxLayers)
	}
	t := &Tree{layers: layers, cache: c, file: o.File, sealed: make(chan struct{})}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.stats.start = time.Now()
	t.demand.start = t.stats.start
	t.guesses.misses = make([]atomic.Int64, len(layers))
	t.fetches.New = func() any { return t.newFetch() }
	if o.File != "" {
		if f, err := openFlat(o.File, len(layers)); err == nil {
			t.flat.Store(f)
			close(t.sealed)
			return t, nil
		}
	}
	t.grow = newGrow(len(layers))
	t.work.Add(1)
	go t.build()
	return t, nil
}

// build reads every layer's entries and then seals the tree.
func (t *Tree) build() {
	defer t.work.Done()
	var feeds sync.WaitGroup
	for i, l := range t.layers {
		feeds.Add(1)
		go func() {
			defer feeds.Done()
			if err := t.feed(i, l); err != nil {
				t.fail(fmt.Errorf("layer %d: %w", i, err))
			}
		}()
	}
	feeds.Wait()
	if t.Err() != nil || t.ctx.Err() != nil {
		return
	}
	f, err := seal(t.grow)
	if err != nil { // an image too big for the flat form stays as it is
		t.grow.mu.Lock()
		t.grow.unsealed = true
		t.grow.wake()
		t.grow.mu.Unlock()
		return
	}
	if t.file != "" {
		if err := f.save(t.file); err == nil {
			if mapped, err := openFlat(t.file, len(t.layers)); err == nil {
				f = mapped
			}
		}
	}
	t.flat.Store(f)
	close(t.sealed)
	t.grow.drop()
}

// feed enters one layer's entries as they come.
func (t *Tree) feed(i int, l Layer) error {
	for from := 0; ; {
		es, done, err := l.Entries(t.ctx, from)
		if err != nil {
			if t.ctx.Err() != nil {
				return nil
			}
			return err
		}
		from += len(es)
		for len(es) > 0 {
			n := min(len(es), feedBatch)
			if err := t.grow.add(i, es[:n]); err != nil {
				return err
			}
			es = es[n:]
		}
		if done {
			t.grow.end(i)
			return nil
		}
	}
}

// feedBatch bounds how many entries are entered at a time, so that readers get in between.
const feedBatch = 512

// fail turns the tree to EIO.
func (t *Tree) fail(err error) {
	t.failed.CompareAndSwap(nil, &err)
	t.grow.fail(err)
}

// drop frees what the sealed tree has replaced, and lets those who wait ask that one.
func (g *grow) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.root, g.err = &name{}, errSealed
	clear(g.layers)
	g.wake()
}

// errSealed sends a question that was put to the growing tree on to the sealed one.
const errSealed = constError("the tree has been sealed")

// Close ends what the tree does in the background and every wait. Nothing must use the tree afterwards.
func (t *Tree) Close() error {
	t.ending.Lock()
	t.cancel()
	t.ending.Unlock()
	t.work.Wait()
	return nil
}

// begin counts one more piece of work, for which the caller calls work.Done when it has ended; false once the tree is closed,
// which waits for what has begun and for nothing else.
func (t *Tree) begin() bool {
	t.ending.Lock()
	defer t.ending.Unlock()
	if t.ctx.Err() != nil {
		return false
	}
	t.work.Add(1)
	return true
}

// Sealed is closed once no answer can change any more.
func (t *Tree) Sealed() <-chan struct{} { return t.sealed }

// Err says why every answer has turned to EIO: a layer failed, as when its bytes are not those of its digest. It is nil
// while the tree works.
func (t *Tree) Err() error {
	if p := t.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// dead returns the error that every answer has turned to.
func (t *Tree) dead() error {
	if p := t.failed.Load(); p != nil {
		return fmt.Errorf("%w: %w", syscall.EIO, *p)
	}
	return nil
}

// wait puts a question to the growing tree until its answer is certain, or no layer that streams gets on. ask runs with grow.mu held, for writing if asked.
// It returns errSealed when the sealed tree is to be asked instead.
func (t *Tree) wait(ctx context.Context, write bool, ask func(*grow) error) error {
	g := t.grow
	for {
		if write {
			g.mu.Lock()
		} else {
			g.mu.RLock()
		}
		err := g.err
		switch {
		case err != nil:
		case g.complete && !g.unsealed:
			err = errUncertain // for a moment: the sealed tree knows what this one can only guess, such as link counts
		default:
			err = ask(g)
		}
		changed := g.changed
		if write {
			g.mu.Unlock()
		} else {
			g.mu.RUnlock()
		}
		if !errors.Is(err, errUncertain) {
			if err == nil || errors.Is(err, errSealed) {
				return err
			}
			if dead := t.dead(); dead != nil {
				return dead
			}
			return err
		}
		if err := t.trouble(); err != nil {
			return fmt.Errorf("%w: %w", syscall.EIO, err)
		}
		look := time.NewTimer(troubleEvery)
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			err = ctx.Err()
		case <-t.ctx.Done():
			err = errClosed
		}
		look.Stop()
		if !errors.Is(err, errUncertain) {
			return err
		}
	}
}

// troubleEvery is how often who waits for a stream looks whether that gets on.
const troubleEvery = time.Second

// trouble is why a layer that streams gets nothing for longer than anybody should wait; nil when all get on. It may pass.
func (t *Tree) trouble() error {
	for _, l := range t.layers {
		if l, ok := l.(interface{ Trouble() error }); ok {
			if err := l.Trouble(); err != nil {
				return err
			}
		}
	}
	return nil
}
