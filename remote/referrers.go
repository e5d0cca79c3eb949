package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// Descriptor names something in a registry, as OCI manifests do.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// Artifact is what a manifest that is not an image's has: its type and its blobs.
type Artifact struct {
	Reference   string            `json:"reference"` // of the repository, at Digest
	Digest      string            `json:"digest"`
	Type        string            `json:"type"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Blobs       []Layer           `json:"blobs"`
}

type artifactManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Subject       *Descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type indexManifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []Descriptor `json:"manifests"`
}

// Referrers lists the manifests in img's repository that say they belong to img, newest last where the registry keeps
// an order. artifactType "" means all. A registry without the referrers API is asked for the tag that stands in for it. None at
// all is not an error.
func (c *Client) Referrers(ctx context.Context, img *Image, artifactType string, a Access) ([]Descriptor, error) {
	return c.ReferrersIn(ctx, Repository(img.Reference), img.Digest, artifactType, a)
}

// ReferrersIn is Referrers for a subject's digest in any repository, which need not have the subject itself.
func (c *Client) ReferrersIn(ctx context.Context, repository, subject, artifactType string, a Access) ([]Descriptor, error) {
	fail := func(err error) error {
		return &Error{Op: "list referrers of", Ref: repository + "@" + subject, Kind: kindOf(err), Cause: trimKind(err)}
	}
	r, err := parseReference(repository)
	if err != nil {
		return nil, err
	}
	if err := digest.Digest(subject).Validate(); err != nil {
		return nil, fail(fmt.Errorf("%w: %w", ErrInvalidReference, err))
	}
	u, err := c.upstream(r.Context(), a)
	if err != nil {
		return nil, fail(err)
	}
	all, _, err := u.referrers(ctx, subject)
	if err != nil {
		return nil, fail(err)
	}
	var want []Descriptor
	for _, d := range all {
		if artifactType == "" || d.ArtifactType == artifactType {
			want = append(want, d)
		}
	}
	return want, nil
}

// referrers fetches the list by the API or, where there is none, by the tag in its place; tagged says which.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#listing-referrers
func (u *upstream) referrers(ctx context.Context, subject string) (list []Descriptor, tagged bool, err error) {
	accept := http.Header{"Accept": {ociIndex}}
	parse := func(d *document) error {
		var index indexManifest
		if err := json.Unmarshal(d.body, &index); err != nil {
			return &protocolError{u.sources[0].host.name, "sent a list of referrers that is none"}
		}
		list = index.Manifests
		return nil
	}
	path := func(s *source) string { return "/v2/" + s.repo + "/referrers/" + subject }
	if _, err = u.fetch(ctx, path, accept, maxManifest, parse); err == nil || !lacksAPI(err) {
		return list, false, err
	}
	path = func(s *source) string { return "/v2/" + s.repo + "/manifests/" + referrersTag(subject) }
	if _, err = u.fetch(ctx, path, accept, maxManifest, parse); errors.Is(kindOf(err), ErrNotFound) {
		return nil, true, nil
	}
	return list, true, err
}

// lacksAPI says whether err is how a registry answers that does not know the referrers API.
func lacksAPI(err error) bool {
	var status *statusError
	return errors.As(err, &status) && (status.code == http.StatusNotFound || status.code == http.StatusMethodNotAllowed || status.code == http.StatusBadRequest)
}

func referrersTag(subject string) string { return strings.Replace(subject, ":", "-", 1) }

// Artifact fetches the manifest of a referrer found in a repository. Its blobs are read by ReadBlob or, lazily, by Blob
// with an Image of which only Reference is set, to the artifact's.
func (c *Client) Artifact(ctx context.Context, repository string, d Descriptor, a Access) (*Artifact, error) {
	ref := repository + "@" + d.Digest
	r, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	art, err := c.artifact(ctx, r, a)
	if err != nil {
		return nil, &Error{Op: "fetch artifact", Ref: displayReference(r), Kind: kindOf(err), Cause: trimKind(err)}
	}
	return art, nil
}

func (c *Client) artifact(ctx context.Context, r name.Reference, a Access) (*Artifact, error) {
	u, err := c.upstream(r.Context(), a)
	if err != nil {
		return nil, err
	}
	data, err := u.manifest(ctx, r.Identifier(), http.Header{"Accept": {ociManifest}})
	if err != nil {
		return nil, err
	}
	var m artifactManifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: the manifest is not what it should be: %s", ErrUnsupported, oneLine(err.Error()))
	}
	art := &Artifact{Reference: displayReference(r), Digest: digest.FromBytes(data).String(), Type: m.ArtifactType, Annotations: m.Annotations}
	if art.Type == "" { // as before OCI 1.1
		art.Type = m.Config.MediaType
	}
	const most = 1024
	if len(m.Layers) > most {
		return nil, fmt.Errorf("%w: %d blobs; at most %d", ErrUnsupported, len(m.Layers), most)
	}
	for i, l := range m.Layers {
		if err := digest.Digest(l.Digest).Validate(); err != nil || l.Size < 0 {
			return nil, fmt.Errorf("%w: blob %d has the digest %q and the size %d", ErrUnsupported, i, oneLine(l.Digest), l.Size)
		}
		art.Blobs = append(art.Blobs, Layer{Digest: l.Digest, MediaType: l.MediaType, Size: l.Size, Annotations: l.Annotations})
	}
	return art, nil
}

// ReadBlob fetches a whole small blob of reference's repository and checks its digest. It refuses blobs of more than limit bytes.
func (c *Client) ReadBlob(ctx context.Context, reference string, l Layer, a Access, limit int64) ([]byte, error) {
	b := c.Blob(&Image{Reference: reference}, l, a)
	defer b.Close()
	if l.Size > limit {
		return nil, b.error(ctx, fmt.Errorf("%w: %d bytes long; at most %d", ErrUnsupported, l.Size, limit))
	}
	data := make([]byte, l.Size)
	for range 2 {
		if _, err := b.ReadAt(ctx, data, 0); err != nil {
			return nil, err
		}
		if verify(digest.Digest(l.Digest), data) == nil {
			return data, nil
		}
		b.Distrust(0, l.Size)
	}
	return nil, b.error(ctx, verify(digest.Digest(l.Digest), data))
}
