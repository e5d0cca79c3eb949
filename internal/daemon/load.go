package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/ctxio"
	"github.com/microsandbox/msb-fs/internal/ociarchive"
	"github.com/microsandbox/msb-fs/remote"
)

// postLoad takes the images of an archive into the store: their blobs are kept as files, so that no registry is needed.
func (d *daemon) postLoad(w http.ResponseWriter, r *http.Request) error {
	var req api.LoadRequest
	if err := read(r, &req); err != nil {
		return err
	}
	if err := absolute("archive", req.Path); err != nil {
		return err
	}
	a, err := ociarchive.Open(r.Context(), req.Path, d.home.Cache("blobs"))
	if err != nil {
		return archiveError(err)
	}
	defer a.Close()
	found, err := a.Images(r.Context(), req.Platform)
	if err != nil {
		return archiveError(fmt.Errorf("load %s: %w", req.Path, err))
	}
	if req.Name != "" && len(found) != 1 {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%s has %d images: one name cannot be that of all", req.Path, len(found))}
	}
	out := newEvents(w)
	for _, img := range found {
		if err := d.load(r.Context(), a, img, req, out); err != nil {
			out.fail(archiveError(fmt.Errorf("load %s: %w", req.Path, err)))
			return nil
		}
	}
	return nil
}

// archiveError says that it is the archive which is wrong, where it is.
func archiveError(err error) error {
	for _, is := range []error{ociarchive.ErrDamaged, ociarchive.ErrUnknown} {
		if errors.Is(err, is) {
			return &api.Error{Code: api.CodeCorrupt, Message: err.Error()}
		}
	}
	return err
}

// load takes one image into the store, under all its names.
func (d *daemon) load(ctx context.Context, a *ociarchive.Archive, found ociarchive.Image, req api.LoadRequest, out *events) error {
	refs, err := names(found, req)
	if err != nil {
		return err
	}
	img, err := remote.ParseImage(refs[0], found.Manifest, found.Config)
	if err != nil {
		return err
	}
	if err := d.images.adopt(ctx, a, img, d.loaded); err != nil {
		return errors.Join(err, d.images.tidy(ctx))
	}
	for _, ref := range refs {
		img.Reference = ref
		if err := d.images.pins.put(img, req.Platform); err != nil {
			return err
		}
		desc := describeImage(img, nil)
		out.send(api.Event{Name: api.EventLoaded, Image: &desc})
	}
	return nil
}

// adopt copies the blobs of img from a into the store and then calls check. Nobody removes anything meanwhile.
func (im *images) adopt(ctx context.Context, a *ociarchive.Archive, img *remote.Image, check func(context.Context, *remote.Image) error) error {
	im.space.RLock()
	defer im.space.RUnlock()
	for _, l := range img.Layers {
		err := writeBlob(im.home.Cache("blobs"), remote.Content{Digest: l.Digest, Size: l.Size, Open: func() (io.ReadCloser, error) {
			r, size, err := a.Blob(l.Digest)
			if err == nil && size != l.Size {
				r.Close()
				err = fmt.Errorf("%w: it has %d bytes, not %d", ociarchive.ErrDamaged, size, l.Size)
			}
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{ctxio.Reader(ctx, io.LimitReader(r, l.Size)), r}, nil
		}})
		if err != nil {
			return fmt.Errorf("layer: %w", err)
		}
	}
	return check(ctx, img)
}

// loaded reads img, whose blobs are here, to its end: that makes the layers' indexes, and holds them against their digests.
func (d *daemon) loaded(ctx context.Context, img *remote.Image) error {
	o, _, err := d.images.acquire(ctx, img, api.Access{})
	if err != nil {
		return err
	}
	defer d.release(o)
	return firstError(d.completer.all(ctx, o.layers, 1))
}

// tidy removes what a load that failed has left.
func (im *images) tidy(ctx context.Context) error {
	if err := im.lockSpace(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	defer im.space.Unlock()
	_, err := im.collect()
	return err
}

// A tag as the distribution specification has it; what does not belong into a name.
var (
	tagForm  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	unwanted = regexp.MustCompile(`[^a-z0-9._-]+`)
)

// names are the references that an image of the archive gets: the one asked for, else those that the archive has. Where it has just
// a tag, or nothing, the file's name comes before it.
func names(img ociarchive.Image, req api.LoadRequest) (refs []string, err error) {
	given := img.Names
	if req.Name != "" {
		given = []string{req.Name}
	}
	if len(given) == 0 {
		given = []string{"latest"}
	}
	for _, name := range given {
		if req.Name == "" && tagForm.MatchString(name) {
			name = baseName(req.Path) + ":" + name
		}
		ref, err := remote.Normalize(name)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// baseName is what an image is called after the file that it was in.
func baseName(path string) string {
	name := strings.ToLower(filepath.Base(path))
	for _, suffix := range []string{".gz", ".tgz", ".zst", ".tar"} {
		name = strings.TrimSuffix(name, suffix)
	}
	if name = strings.Trim(unwanted.ReplaceAllString(name, "-"), "._-"); name == "" {
		return "image"
	}
	return name
}
