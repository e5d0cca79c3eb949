package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/microsandbox/msb-fs/chunkcache"
	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/layer"
	"github.com/microsandbox/msb-fs/remote"
)

// images resolves references and keeps the images that are in use open, each once however many mounts and sandboxes
// show it, and each layer once however many images stand on it. It is safe for concurrent use.
type images struct {
	home       api.Home
	pins       pins
	registries *registries
	cache      *chunkcache.Cache
	spans      *spans
	partials   partials
	log        *slog.Logger

	// space is held by those who remove what is not in use, and shared by those who are opening an image. It is taken
	// before mu.
	space sync.RWMutex

	mu     sync.Mutex
	open   map[string]*openImage // by manifest digest
	layers map[string]*openLayer // by blob digest
}

// openImage is an image that somebody uses.
type openImage struct {
	*remote.Image
	tree   *fs.Tree
	layers []*openLayer // bottom first, as Image.Layers

	refs int // guarded by images.mu
	uses int // guarded by images.mu: how many mounts and sandboxes there have been of it
}

// openLayer is a layer that open images stand on.
type openLayer struct {
	*layer.Layer
	desc   layer.Descriptor
	blob   layerBlob
	unkeep func()            // not nil while a stream's blob is kept
	lease  *chunkcache.Lease // of its chunks

	refs       int  // guarded by images.mu
	completing bool // guarded by images.mu: a task is fetching what is missing
}

// resolve returns the image that req names, as its pull policy says. Only policy always, and an image that is not cached,
// touch the network.
func (im *images) resolve(ctx context.Context, req api.ImageRequest) (*remote.Image, error) {
	return im.resolveEarly(ctx, req, nil)
}

// resolveEarly is resolve that calls early, if it is not nil, as soon as the manifest of an image that is not cached is here: see
// remote.Client.ResolveEarly.
func (im *images) resolveEarly(ctx context.Context, req api.ImageRequest, early func(*remote.Image)) (*remote.Image, error) {
	ref, err := remote.Normalize(req.Image)
	if err != nil {
		return nil, err
	}
	cached, _, err := im.pins.get(ref, req.Access.Platform)
	if cached == nil && err == nil {
		cached, err = im.pins.atDigest(ref)
	}
	if err != nil {
		return nil, err
	}
	switch req.Pull {
	case api.PullNever:
		if cached == nil {
			return nil, &api.Error{Code: api.CodeNotCached, Message: "image not cached: " + req.Image}
		}
		return cached, nil
	case "", api.PullIfMissing:
		if cached != nil {
			return cached, nil
		}
	case api.PullAlways:
	default:
		return nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("unknown pull policy %q: use %s, %s or %s",
			req.Pull, api.PullIfMissing, api.PullAlways, api.PullNever)}
	}
	client, access, err := im.registries.client(req.Access)
	if err != nil {
		return nil, err
	}
	var img *remote.Image
	if cached == nil {
		img, err = client.ResolveEarly(ctx, ref, access, early)
	} else {
		img, err = client.Revalidate(ctx, cached, access)
	}
	if errors.Is(err, remote.ErrUnreachable) && cached != nil {
		return nil, &api.Error{Code: api.CodeUnreachable, Message: fmt.Sprintf(
			"%v; %s is cached: use --pull %s", err, cached.Digest, api.PullIfMissing)}
	}
	if err != nil {
		return nil, err
	}
	return img, im.pins.put(img, req.Access.Platform)
}

// acquire opens img, or joins whoever has it open. It returns as soon as every layer can be looked into or streams,
// with the number of bytes that had been fetched for its layers before it was called. The caller releases the image.
func (im *images) acquire(ctx context.Context, img *remote.Image, a api.Access) (*openImage, int64, error) {
	return im.acquireAhead(ctx, img, im.ahead(a))
}

// acquireAhead is acquire with what a has asked for, or will. It closes a.
func (im *images) acquireAhead(ctx context.Context, img *remote.Image, a *ahead) (_ *openImage, _ int64, err error) {
	defer func() { err = errors.Join(err, a.close()) }()
	if o := im.join(img.Digest, nil); o != nil {
		return o, o.fetched(), nil
	}
	a.begin(ctx, img)
	a.wait(img) // before space: who removes something may stand between the two
	im.space.RLock()
	defer im.space.RUnlock()
	client, access, err := im.registries.client(a.access)
	if err != nil {
		return nil, 0, err
	}
	fresh := &openImage{Image: img, refs: 1}
	before := im.layersFetched()
	if fresh.layers, err = im.acquireLayers(ctx, client, img, access, a); err != nil {
		return nil, 0, err
	}
	shown := &spanImage{spans: im.spans}
	trees := make([]fs.Layer, len(fresh.layers))
	var base int64
	for i, l := range fresh.layers {
		trees[i] = shown.layer(i, l)
		base += before[l]
	}
	fresh.tree, err = fs.New(ctx, trees, shown.cache(im.cache), fs.Options{File: im.treeFor(fresh)})
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("open %s: %w", img.Reference, err), im.releaseLayers(fresh.layers))
	}
	shown.tree.Store(fresh.tree)
	if o := im.join(img.Digest, fresh); o != fresh { // somebody was faster
		if err := errors.Join(fresh.tree.Close(), im.releaseLayers(fresh.layers)); err != nil {
			im.log.Error("close image", "image", img.Reference, "err", err)
		}
		return o, base, nil
	}
	return fresh, base, nil
}

// join takes a reference to the open, sound image of that digest; where there is none it enters fresh. A tree whose layer
// turned out corrupt stays with those who have it; whoever comes later gets a new one.
func (im *images) join(digest string, fresh *openImage) *openImage {
	im.mu.Lock()
	defer im.mu.Unlock()
	if o := im.open[digest]; o != nil && o.sound() {
		o.refs++
		return o
	}
	if fresh != nil {
		im.open[digest] = fresh
	}
	return fresh
}

// sound tells whether no layer of o has turned out corrupt. The tree hears of it a moment after the layer.
func (o *openImage) sound() bool {
	for _, l := range o.layers {
		if l.Err() != nil {
			return false
		}
	}
	return o.tree.Err() == nil
}

// layersFetched returns what has been fetched so far for each open layer, bytes.
func (im *images) layersFetched() map[*openLayer]int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	n := make(map[*openLayer]int64, len(im.layers))
	for _, l := range im.layers {
		n[l] = l.blob.Stats().Bytes
	}
	return n
}

// treeFor is where o's merged tree is kept. It is not kept while a layer's index is somebody else's word.
func (im *images) treeFor(o *openImage) string {
	for _, l := range o.layers {
		if mode, _ := l.Mode(); mode == layer.LazyIndex && !l.Trusted() {
			return ""
		}
	}
	return im.treeFile(o.Digest)
}

func (im *images) treeFile(digest string) string {
	return filepath.Join(im.home.Cache("trees"), strings.TrimPrefix(digest, "sha256:")+".tree")
}

// acquireLayers opens img's layers all at once: every one of them needs a round trip or a stream of its own.
func (im *images) acquireLayers(ctx context.Context, c *remote.Client, img *remote.Image, a remote.Access, asked *ahead) ([]*openLayer, error) {
	out := make([]*openLayer, len(img.Layers))
	errs := make([]error, len(img.Layers))
	var wg sync.WaitGroup
	for i, d := range img.Layers {
		wg.Go(func() {
			errs[i] = recovered(im.log, func() (err error) {
				out[i], err = im.acquireLayer(ctx, c, img, d, a, asked)
				return err
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		opened := out[:0]
		for _, l := range out {
			if l != nil {
				opened = append(opened, l)
			}
		}
		im.releaseLayers(opened)
		return nil, firstError(errs)
	}
	return out, nil
}

// firstError is the one that the user is told: the others most likely say the same of other layers.
func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// streamBuffers is what the layers of one image that stream may buffer together, bytes, as long as each has room for one chunk.
const streamBuffers = 48 << 20

func (im *images) acquireLayer(ctx context.Context, c *remote.Client, img *remote.Image, d remote.Layer, a remote.Access, asked *ahead) (*openLayer, error) {
	if l := im.joinLayer(d.Digest, nil); l != nil {
		return l, nil
	}
	blob, o, err := asked.open(c, img, d, a)
	if err != nil {
		return nil, err
	}
	fresh := &openLayer{desc: descriptor(d), blob: blob, lease: im.cache.Lease(), refs: 1}
	o.Chunks, o.Buffers = leasedStore{im.cache, fresh.lease}, streamBuffers/int64(len(img.Layers))
	fresh.Layer, err = layer.Open(ctx, fresh.desc, im.spans.blob(fresh.streamed(ctx, o.Dir), d.Digest), o)
	if err != nil {
		fresh.lease.Release()
		return nil, fmt.Errorf("open layer %s: %w", d.Digest, err)
	}
	for key := range fresh.Digests() {
		fresh.lease.Add(key)
	}
	if l := im.joinLayer(d.Digest, fresh); l != fresh { // somebody was faster
		if err := fresh.close(); err != nil {
			im.log.Error("close layer", "layer", d.Digest, "err", err)
		}
		return l, nil
	}
	return fresh, nil
}

// descriptor is l as package layer wants it.
func descriptor(l remote.Layer) layer.Descriptor {
	return layer.Descriptor{Digest: l.Digest, DiffID: l.DiffID, MediaType: l.MediaType, Size: l.Size, Annotations: l.Annotations}
}

// streamed is l's blob for package layer, which keeps its indexes in dir. After a crash it goes on with a stream from where it
// last took down what it knew, but with zstd reads from the start again: that is kept, and whatever is pulled too, because a
// pull is there to be finished. A start is not slowed down by it.
func (l *openLayer) streamed(ctx context.Context, dir string) layer.Blob {
	kept, ok := l.blob.(*keptBlob)
	pulled := priority.From(ctx) == priority.Background
	if !ok || !pulled && !strings.HasSuffix(l.desc.MediaType, "zstd") || layer.Lazy(dir, l.desc) {
		return l.blob
	}
	l.unkeep = kept.lead()
	return inOrder{kept}
}

// close lets go of l, which nobody uses any more.
func (l *openLayer) close() error {
	defer l.lease.Release()
	mode, _ := l.Mode()
	if kept, ok := l.blob.(*keptBlob); ok && (mode == layer.Full || errors.Is(l.Err(), layer.ErrCorrupt)) {
		kept.discard()
	}
	err := l.Layer.Close()
	if l.unkeep != nil {
		l.unkeep()
	}
	return errors.Join(err, l.blob.Close())
}

// leasedStore is the cache for a layer that does not know its chunks yet: what it stores is leased as it comes.
type leasedStore struct {
	*chunkcache.Cache
	lease *chunkcache.Lease
}

// Put stores data under key for as long as the layer is open at least.
func (s leasedStore) Put(ctx context.Context, key chunkcache.Key, data []byte) error {
	s.lease.Add(key)
	return s.Cache.Put(ctx, key, data)
}

// joinLayer takes a reference to the open, sound layer of that digest; where there is none it enters fresh.
func (im *images) joinLayer(digest string, fresh *openLayer) *openLayer {
	im.mu.Lock()
	defer im.mu.Unlock()
	if l := im.layers[digest]; l != nil && l.Err() == nil {
		l.refs++
		return l
	}
	if fresh != nil {
		im.layers[digest] = fresh
	}
	return fresh
}

// isOpen tells whether img is open.
func (im *images) isOpen(img *remote.Image) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.open[img.Digest] != nil
}

// layerOpen tells whether the layer of that digest is open.
func (im *images) layerOpen(digest string) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.layers[digest] != nil
}

// use counts one more mount or sandbox of o.
func (im *images) use(o *openImage) {
	im.mu.Lock()
	defer im.mu.Unlock()
	o.uses++
}

// exclusive tells whether o has had one mount or sandbox only: what has been read of it is then that one's doing.
func (im *images) exclusive(o *openImage) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return o.uses == 1
}

// beginCompleting returns those of layers that no task completes yet, for one that will, which has a reference to o until
// endCompleting. There are none when nobody uses o any more.
func (im *images) beginCompleting(o *openImage, layers []*openLayer) (begun []*openLayer) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if o.refs == 0 {
		return nil
	}
	for _, l := range layers {
		if !l.completing {
			l.completing = true
			begun = append(begun, l)
		}
	}
	if len(begun) > 0 {
		o.refs++
	}
	return begun
}

// endCompleting undoes beginCompleting.
func (im *images) endCompleting(o *openImage, layers []*openLayer) error {
	im.mu.Lock()
	for _, l := range layers {
		l.completing = false
	}
	im.mu.Unlock()
	return im.release(o)
}

// release gives back one reference to o and closes it with the last. While somebody removes what is not in use it waits: a
// layer that is still closing is in use.
func (im *images) release(o *openImage) error {
	im.space.RLock()
	defer im.space.RUnlock()
	im.mu.Lock()
	o.refs--
	last := o.refs == 0
	if last && im.open[o.Digest] == o {
		delete(im.open, o.Digest)
	}
	im.mu.Unlock()
	if !last {
		return nil
	}
	return errors.Join(o.tree.Close(), im.releaseLayers(o.layers))
}

func (im *images) releaseLayers(ls []*openLayer) error {
	var errs []error
	for _, l := range ls {
		im.mu.Lock()
		l.refs--
		last := l.refs == 0
		if d := l.blob.Digest(); last && im.layers[d] == l {
			delete(im.layers, d)
		}
		im.mu.Unlock()
		if last {
			errs = append(errs, l.close())
		}
	}
	return errors.Join(errs...)
}

// byDigest returns the open images by manifest digest.
func (im *images) byDigest() map[string]*openImage {
	im.mu.Lock()
	defer im.mu.Unlock()
	return maps.Clone(im.open)
}

// resolvePinned returns the image with that manifest digest, which req's reference once led to. When it is not cached it
// is fetched by its digest, wherever the tag points by now.
func (im *images) resolvePinned(ctx context.Context, req api.ImageRequest, digest string) (*remote.Image, error) {
	img, err := im.pins.manifest(digest)
	if img != nil || err != nil {
		return img, err
	}
	byDigest, err := remote.AtDigest(req.Image, digest)
	if err != nil {
		return nil, err
	}
	req.Image = byDigest
	return im.resolve(ctx, req)
}

// drop removes what is cached of img, unless it is in use.
func (im *images) drop(ctx context.Context, img *remote.Image) error {
	if err := im.lockSpace(ctx); err != nil {
		return err
	}
	defer im.space.Unlock()
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, l := range img.Layers {
		if im.layers[l.Digest] != nil {
			return &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("%s is in use", img.Reference)}
		}
	}
	for _, l := range img.Layers {
		if err := errors.Join(im.partials.remove(l.Digest), layer.Remove(im.home.Cache("layers"), l.Digest, im.cache)); err != nil {
			return fmt.Errorf("drop layer %s: %w", l.Digest, err)
		}
	}
	if err := os.Remove(im.treeFile(img.Digest)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("drop tree of %s: %w", img.Reference, err)
	}
	return nil
}
