package remote

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

var manifestAccept = http.Header{"Accept": {ociIndex, dockerList, ociManifest, dockerManifest}}

// maxNesting is how deep indexes may be in one another.
const maxNesting = 3

// Resolve finds the image that ref names for the platform of a: one request for the manifest (one more for each index
// on the way) and one for the config. Every digest is verified.
func (c *Client) Resolve(ctx context.Context, ref string, a Access) (*Image, error) {
	return c.ResolveEarly(ctx, ref, a, nil)
}

// ResolveEarly is Resolve for who has something to do as soon as the manifest is here and verified, which is a round trip before the
// image is known: it calls early with an Image that has neither Config nor DiffIDs, is early's alone and may yet turn out to be of no
// use. ResolveEarly returns only after early has.
func (c *Client) ResolveEarly(ctx context.Context, ref string, a Access, early func(*Image)) (*Image, error) {
	r, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := c.resolve(ctx, r, a, early)
	if err != nil {
		return nil, resolveError(ctx, r, err)
	}
	return img, nil
}

func resolveError(ctx context.Context, r name.Reference, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("resolve %s: %w", displayReference(r), context.Cause(ctx))
	}
	return &Error{Op: "resolve", Ref: displayReference(r), Kind: kindOf(err), Cause: trimKind(err), Hint: hint(err, r.Context().RegistryStr())}
}

func (c *Client) resolve(ctx context.Context, r name.Reference, a Access, early func(*Image)) (*Image, error) {
	want, err := parsePlatform(a.Platform)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	u, err := c.upstream(r.Context(), a)
	if err != nil {
		return nil, err
	}
	u.order()[0].warm() // layers will be asked for all at once
	data, err := u.manifest(ctx, r.Identifier(), nil)
	if err != nil {
		return nil, err
	}
	return u.image(ctx, r, data, want, a.Platform != "", early)
}

// image goes from the manifest or index that r names to the image. early may be nil: see ResolveEarly.
func (u *upstream) image(ctx context.Context, r name.Reference, data []byte, want platform, strict bool, early func(*Image)) (*Image, error) {
	top := digest.FromBytes(data)
	for depth := 0; ; depth++ {
		m, err := parseManifest(data)
		if err != nil {
			return nil, err
		}
		if !m.isIndex() {
			break
		}
		if depth == maxNesting {
			return nil, fmt.Errorf("%w: indexes more than %d deep", ErrUnsupported, maxNesting)
		}
		d, err := m.choose(want)
		if err != nil {
			return nil, err
		}
		if data, err = u.manifest(ctx, d.Digest.String(), nil); err != nil {
			return nil, err
		}
	}
	img, err := parseImage(displayReference(r), data)
	if err != nil {
		return nil, err
	}
	if top.String() != img.Digest {
		img.IndexDigest = top.String()
	}
	if early != nil {
		sketch := *img
		sketch.Layers = slices.Clone(img.Layers)
		early(&sketch)
	}
	if err := u.addConfig(ctx, img); err != nil {
		return nil, err
	}
	have, err := parsePlatform(img.Platform)
	if strict && (err != nil || want.fit(have) == 0) {
		return nil, fmt.Errorf("%w: no image for %s; there is %s", ErrUnsupported, want, img.Platform)
	}
	return img, nil
}

// manifest fetches a manifest by tag or digest. header may add to the request; with a document of status 304 the bytes are nil.
func (u *upstream) manifest(ctx context.Context, id string, header http.Header) ([]byte, error) {
	if header == nil {
		header = manifestAccept
	}
	path := func(s *source) string { return "/v2/" + s.repo + "/manifests/" + id }
	doc, err := u.fetch(ctx, path, header, maxManifest, func(d *document) error {
		if d.status == http.StatusNotModified {
			return nil
		}
		want := digest.Digest(id)
		if want.Validate() != nil { // a tag: the registry says what its digest is, if it likes
			want = digest.Digest(d.header.Get("Docker-Content-Digest"))
			if want.Validate() != nil {
				return nil
			}
		}
		return verify(want, d.body)
	})
	if err != nil {
		return nil, err
	}
	return doc.body, nil
}

func (u *upstream) addConfig(ctx context.Context, img *Image) error {
	d, err := img.configDescriptor()
	if err != nil {
		return err
	}
	path := func(s *source) string { return "/v2/" + s.repo + "/blobs/" + d.Digest.String() }
	doc, err := u.fetch(ctx, path, nil, maxConfig, func(doc *document) error { return verify(d.Digest, doc.body) })
	if err != nil {
		return err
	}
	return img.addConfig(doc.body)
}

// Revalidate asks, with one conditional request, whether img.Reference still names img. If it does, the result is img
// itself. If not, the result is the image it names now, of which only what is new is fetched. The caller tells the two apart by
// Digest. a.Platform must be what img was resolved with.
func (c *Client) Revalidate(ctx context.Context, img *Image, a Access) (*Image, error) {
	r, err := parseReference(img.Reference)
	if err != nil {
		return nil, err
	}
	now, err := c.revalidate(ctx, r, img, a)
	if err != nil {
		return nil, resolveError(ctx, r, err)
	}
	return now, nil
}

func (c *Client) revalidate(ctx context.Context, r name.Reference, img *Image, a Access) (*Image, error) {
	want, err := parsePlatform(a.Platform)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	u, err := c.upstream(r.Context(), a)
	if err != nil {
		return nil, err
	}
	known := img.Digest
	if img.IndexDigest != "" {
		known = img.IndexDigest
	}
	if r.Identifier() == known {
		return img, nil // a digest always names the same
	}
	header := manifestAccept.Clone()
	header["If-None-Match"] = []string{`"` + known + `"`}
	data, err := u.manifest(ctx, r.Identifier(), header)
	if err != nil {
		return nil, err
	}
	if data == nil || verify(digest.Digest(known), data) == nil {
		return img, nil
	}
	return u.image(ctx, r, data, want, a.Platform != "", nil)
}
