package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// Content is a blob to push.
type Content struct {
	MediaType   string
	Digest      string
	Size        int64
	Annotations map[string]string
	Open        func() (io.ReadCloser, error) // from its start; may be called more than once
}

// NewContent is a Content of bytes, which must not change any more.
func NewContent(mediaType string, data []byte, annotations map[string]string) Content {
	return Content{
		MediaType: mediaType, Digest: digest.FromBytes(data).String(), Size: int64(len(data)), Annotations: annotations,
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}
}

func (c Content) descriptor() Descriptor {
	return Descriptor{MediaType: c.MediaType, Digest: c.Digest, Size: c.Size, Annotations: c.Annotations}
}

// PushArtifact stores blobs in a repository as an artifact that belongs to a manifest, subject, which may be in it or
// not. It returns the artifact's digest. A registry without the referrers API gets the tag that stands in for it.
func (c *Client) PushArtifact(ctx context.Context, repository string, subject Descriptor, artifactType string, blobs []Content, annotations map[string]string, a Access) (string, error) {
	// Registries from before OCI 1.1 take the config's media type for the artifact's, so that it is both.
	config := NewContent(artifactType, []byte("{}"), nil)
	m := artifactManifest{SchemaVersion: 2, MediaType: ociManifest, ArtifactType: artifactType, Config: config.descriptor(),
		Layers: []Descriptor{}, Subject: &subject, Annotations: annotations}
	for _, b := range blobs {
		m.Layers = append(m.Layers, b.descriptor())
	}
	data, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	p, err := c.pusher(repository, a)
	if err == nil {
		err = p.pushAll(ctx, append(slices.Clone(blobs), config))
	}
	id := digest.FromBytes(data).String()
	var known bool
	if err == nil {
		known, err = p.putManifest(ctx, id, ociManifest, data)
	}
	if err == nil && !known {
		err = p.tagReferrer(ctx, subject.Digest, Descriptor{MediaType: ociManifest, Digest: id, Size: int64(len(data)), ArtifactType: artifactType, Annotations: annotations})
	}
	if err != nil {
		return "", pushError(repository, err)
	}
	return id, nil
}

// PushImage stores an image's blobs, then its manifest, under reference, which has a tag. Blobs that the repository has are not
// sent again.
func (c *Client) PushImage(ctx context.Context, reference string, mediaType string, manifest []byte, blobs []Content, a Access) error {
	r, err := parseReference(reference)
	if err != nil {
		return err
	}
	p, err := c.pusher(r.Context().Name(), a)
	if err == nil {
		err = p.pushAll(ctx, blobs)
	}
	if err == nil {
		_, err = p.putManifest(ctx, r.Identifier(), mediaType, manifest)
	}
	if err != nil {
		return pushError(displayReference(r), err)
	}
	return nil
}

func pushError(ref string, err error) error {
	return &Error{Op: "push", Ref: ref, Kind: kindOf(err), Cause: trimKind(err)}
}

// pusher stores things in one repository of its own registry; mirrors are for reading.
type pusher struct {
	client *Client
	up     *upstream
	origin *source
}

func (c *Client) pusher(repository string, a Access) (*pusher, error) {
	r, err := parseReference(repository)
	if err != nil {
		return nil, err
	}
	u, err := c.upstream(r.Context(), a)
	if err != nil {
		return nil, err
	}
	return &pusher{c, u, u.sources[len(u.sources)-1]}, nil
}

func (p *pusher) pushAll(ctx context.Context, blobs []Content) error {
	for _, b := range blobs {
		if err := p.pushBlob(ctx, b); err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
	}
	return nil
}

// pushTries is how often each step of a push is tried.
const pushTries = 4

// retry does one step of a push until it succeeds or trying again is of no use.
func (p *pusher) retry(ctx context.Context, step func(context.Context) error) error {
	for try := 1; ; try++ {
		err := step(ctx)
		if err == nil || try == pushTries || !transient(err) || ctx.Err() != nil {
			return err
		}
		if err := p.client.sleep(ctx, backoff(try)); err != nil {
			return err
		}
		p.client.stats.addRetry()
	}
}

func (p *pusher) request(method, path string) request {
	return request{method: method, path: path, repo: p.origin.repo, push: true, count: &p.client.stats, class: priority.OnDemand}
}

// pushBlob uploads a blob in one piece.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#post-then-put
func (p *pusher) pushBlob(ctx context.Context, b Content) error {
	base := "/v2/" + p.origin.repo + "/blobs/"
	return p.retry(ctx, func(ctx context.Context) error {
		if there, err := p.has(ctx, base+b.Digest); there || err != nil {
			return err
		}
		resp, err := p.send(ctx, p.request(http.MethodPost, base+"uploads/"), http.StatusAccepted)
		if err != nil {
			return err
		}
		to, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
		if err != nil || resp.Header.Get("Location") == "" {
			return &protocolError{p.origin.host.name, "says nowhere to upload to"}
		}
		q := to.Query()
		q.Set("digest", b.Digest)
		to.RawQuery, to.User = q.Encode(), nil
		r := p.request(http.MethodPut, "")
		r.body, r.length = b.Open, b.Size
		r.header = http.Header{"Content-Type": {"application/octet-stream"}}
		return p.put(ctx, to, r)
	})
}

// has asks whether a blob is there.
func (p *pusher) has(ctx context.Context, path string) (bool, error) {
	watch := newWatch(ctx, p.client.attemptTimeout())
	defer watch.stop()
	r := p.request(http.MethodHead, path)
	resp, err := p.origin.do(watch.ctx, r)
	redirected := err == nil && isRedirect(resp.StatusCode)
	if redirected {
		resp, _, err = p.origin.follow(watch.ctx, resp, r)
	}
	if err != nil {
		return false, watch.explain(err)
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		discard(resp)
		return false, nil
	case resp.StatusCode == http.StatusOK, redirected: // the URL may be signed for GET only
		discard(resp)
		return true, nil
	}
	return false, failure(resp, p.client.now())
}

func (p *pusher) put(ctx context.Context, to *url.URL, r request) error {
	if from := p.origin.scheme.Load(); to.Scheme != "https" && to.Scheme != from {
		return &protocolError{p.origin.host.name, "wants an upload over plain HTTP, which is not safe"}
	}
	watch := newWatch(ctx, p.client.attemptTimeout())
	defer watch.stop()
	open := r.body
	r.body = func() (io.ReadCloser, error) {
		body, err := open()
		return &watchedBody{body, watch}, err
	}
	resp, err := p.origin.doElsewhere(watch.ctx, to, r)
	if err != nil {
		return watch.explain(err)
	}
	if resp.StatusCode != http.StatusCreated {
		return failure(resp, p.client.now())
	}
	discard(resp)
	return nil
}

// watchedBody is a request's body whose being read is progress.
type watchedBody struct {
	io.ReadCloser
	watch *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.progress()
	return b.ReadCloser.Read(p)
}

// putManifest stores a manifest by tag or digest. subject says that the registry took note of the manifest's subject.
func (p *pusher) putManifest(ctx context.Context, id, mediaType string, data []byte) (subject bool, err error) {
	err = p.retry(ctx, func(ctx context.Context) error {
		r := p.request(http.MethodPut, "/v2/"+p.origin.repo+"/manifests/"+id)
		r.header = http.Header{"Content-Type": {mediaType}}
		r.body, r.length = NewContent("", data, nil).Open, int64(len(data))
		resp, err := p.send(ctx, r, http.StatusCreated, http.StatusOK, http.StatusAccepted)
		if err == nil {
			subject = resp.Header.Get("OCI-Subject") != ""
		}
		return err
	})
	return subject, err
}

// send does a request and takes only one of the given statuses for an answer, whose body is gone.
func (p *pusher) send(ctx context.Context, r request, want ...int) (*http.Response, error) {
	watch := newWatch(ctx, p.client.attemptTimeout())
	defer watch.stop()
	resp, err := p.origin.do(watch.ctx, r)
	if err != nil {
		return nil, watch.explain(err)
	}
	if !slices.Contains(want, resp.StatusCode) {
		return nil, failure(resp, p.client.now())
	}
	discard(resp)
	return resp, nil
}

// tagReferrer adds a referrer to the tag that stands in for the referrers API, unless the registry has the API after all.
func (p *pusher) tagReferrer(ctx context.Context, subject string, d Descriptor) error {
	list, tagged, err := (&upstream{client: p.client, sources: []*source{p.origin}}).referrers(ctx, subject)
	if err != nil || !tagged {
		return err
	}
	list = slices.DeleteFunc(list, func(o Descriptor) bool { return o.Digest == d.Digest })
	data, err := json.Marshal(indexManifest{SchemaVersion: 2, MediaType: ociIndex, Manifests: append(list, d)})
	if err != nil {
		return err
	}
	_, err = p.putManifest(ctx, referrersTag(subject), ociIndex, data)
	return err
}
