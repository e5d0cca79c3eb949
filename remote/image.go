package remote

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	_ "crypto/sha512" // so that sha512 digests can be checked
)

// Image is a pinned image: what a reference was resolved to once.
type Image struct {
	Reference   string  `json:"reference"`             // as Normalize spells it
	Digest      string  `json:"digest"`                // of Manifest
	IndexDigest string  `json:"indexDigest,omitempty"` // of the index the reference names, where it names one
	MediaType   string  `json:"mediaType"`             // of Manifest
	Platform    string  `json:"platform"`              // os/arch[/variant], as Config says
	Manifest    []byte  `json:"manifest"`              // raw JSON
	Config      []byte  `json:"config"`                // raw JSON
	Layers      []Layer `json:"layers"`                // bottom first
}

// Layer is one layer of an Image.
type Layer struct {
	Digest      string            `json:"digest"`                // of the blob
	DiffID      string            `json:"diffID"`                // of the uncompressed tar
	MediaType   string            `json:"mediaType"`             // as the manifest spells it
	Size        int64             `json:"size"`                  // of the blob, bytes
	Annotations map[string]string `json:"annotations,omitempty"` // of the manifest's descriptor
}

// Size is the sum of the layers' blobs, bytes.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// Limits of what is accepted from a registry. Real images are far below them.
const (
	maxManifest = 4 << 20 // as much as registries accept
	maxConfig   = 8 << 20
	maxLayers   = 127 // as many as Docker's own storage takes
)

// Media types of manifests. https://github.com/opencontainers/image-spec/blob/v1.1.0/media-types.md
const (
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"

	emptyConfig = "application/vnd.oci.empty.v1+json" // of artifacts
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls"`
	Annotations map[string]string `json:"annotations"`
	Platform    *platformJSON     `json:"platform"`
}

type platformJSON struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

// manifest is an image manifest or an index, whichever it turns out to be.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config"`
	Layers        []descriptor `json:"layers"`
	Manifests     []descriptor `json:"manifests"`
	ArtifactType  string       `json:"artifactType"`
	FSLayers      []any        `json:"fsLayers"` // of schema 1
}

func (m *manifest) isIndex() bool { return m.Manifests != nil }

// parseManifest reads a manifest or index and holds it to the rules. A document that could be read as both is refused:
// who checks it and who runs it might see different images.
func parseManifest(data []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: the manifest is not what it should be: %s", ErrUnsupported, oneLine(err.Error()))
	}
	switch {
	case m.FSLayers != nil || m.SchemaVersion == 1:
		return nil, fmt.Errorf("%w: a Docker schema 1 manifest; push the image again with a current tool", ErrUnsupported)
	case m.Manifests != nil && (m.Config != nil || m.Layers != nil):
		return nil, fmt.Errorf("%w: the manifest is both an image and an index", ErrUnsupported)
	case m.Manifests == nil && m.Config == nil:
		return nil, fmt.Errorf("%w: neither an image manifest nor an index (media type %q)", ErrUnsupported, oneLine(m.MediaType))
	}
	want := ociManifest
	if m.isIndex() {
		want = ociIndex
	}
	switch m.MediaType {
	case "":
		m.MediaType = want
	case ociIndex, dockerList:
		if !m.isIndex() {
			return nil, fmt.Errorf("%w: an image manifest that calls itself an index", ErrUnsupported)
		}
	case ociManifest, dockerManifest:
		if m.isIndex() {
			return nil, fmt.Errorf("%w: an index that calls itself an image manifest", ErrUnsupported)
		}
	default:
		return nil, fmt.Errorf("%w: manifest of media type %q", ErrUnsupported, oneLine(m.MediaType))
	}
	if m.isIndex() {
		return &m, nil
	}
	return &m, m.check()
}

// check holds an image manifest's descriptors to the rules.
func (m *manifest) check() error {
	if err := m.Config.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: config %w", ErrUnsupported, err)
	}
	// https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md#guidelines-for-artifact-usage
	if m.Config.MediaType == emptyConfig {
		return fmt.Errorf("%w: an artifact (%s), not an image", ErrUnsupported, oneLine(cmp.Or(m.ArtifactType, "of no type")))
	}
	if n := len(m.Layers); n > maxLayers {
		return fmt.Errorf("%w: %d layers; more than %d are not supported", ErrUnsupported, n, maxLayers)
	}
	var total int64
	for i, l := range m.Layers {
		if err := l.Digest.Validate(); err != nil {
			return fmt.Errorf("%w: layer %d: %w", ErrUnsupported, i, err)
		}
		if strings.Contains(l.MediaType, "nondistributable") || strings.Contains(l.MediaType, ".foreign.") || len(l.URLs) > 0 {
			return fmt.Errorf("%w: layer %s is foreign (%s): its bytes are not in the registry", ErrUnsupported, l.Digest, oneLine(l.MediaType))
		}
		if l.Size < 0 || l.Size > math.MaxInt64-total {
			return fmt.Errorf("%w: layer %s has the size %d", ErrUnsupported, l.Digest, l.Size)
		}
		total += l.Size
	}
	return nil
}

// choose picks the manifest of an index that fits best; nested indexes are candidates too. The order of the index decides between equals, as the
// specification says.
func (m *manifest) choose(want platform) (*descriptor, error) {
	var best *descriptor
	bestFit := 0
	var have []string
	for i := range m.Manifests {
		d := &m.Manifests[i]
		if d.Digest.Validate() != nil || isAttestation(d) {
			continue
		}
		fit := 1 // without a platform: perhaps
		if d.Platform != nil {
			p := platform{d.Platform.OS, d.Platform.Architecture, d.Platform.Variant}
			fit = want.fit(p)
			have = append(have, oneLine(p.String()))
		}
		if fit > bestFit {
			best, bestFit = d, fit
		}
	}
	if best == nil {
		slices.Sort(have)
		have = slices.Compact(have)
		if len(have) == 0 {
			return nil, fmt.Errorf("%w: the index names no image", ErrUnsupported)
		}
		return nil, fmt.Errorf("%w: no image for %s; there are %s; choose with --platform", ErrUnsupported, want, strings.Join(have[:min(len(have), 20)], ", "))
	}
	return best, nil
}

// isAttestation recognises what builders put beside the images of an index.
// https://docs.docker.com/build/metadata/attestations/attestation-storage/
func isAttestation(d *descriptor) bool {
	if d.Annotations["vnd.docker.reference.type"] != "" {
		return true
	}
	return d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// imageConfig is the part of a config this package reads.
type imageConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	RootFS       struct {
		DiffIDs []digest.Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

// ParseImage rebuilds an Image from its manifest's and config's bytes, with no network. It checks that the config is the
// one the manifest names; the manifest's own digest is what Image.Digest says and is for the caller to compare.
func ParseImage(reference string, manifestJSON, configJSON []byte) (*Image, error) {
	img, err := parseImage(reference, manifestJSON)
	if err == nil {
		err = img.addConfig(configJSON)
	}
	if err != nil {
		return nil, &Error{Op: "read", Ref: reference, Kind: kindOf(err), Cause: trimKind(err)}
	}
	return img, nil
}

// parseImage makes an Image that still wants its config.
func parseImage(reference string, data []byte) (*Image, error) {
	m, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	if m.isIndex() {
		return nil, fmt.Errorf("%w: an index where an image manifest should be", ErrUnsupported)
	}
	img := &Image{Reference: reference, Digest: digest.FromBytes(data).String(), MediaType: m.MediaType, Manifest: data}
	for _, l := range m.Layers {
		img.Layers = append(img.Layers, Layer{Digest: l.Digest.String(), MediaType: l.MediaType, Size: l.Size, Annotations: l.Annotations})
	}
	return img, nil
}

// configDigest is the digest of the config that the manifest names.
func (i *Image) configDescriptor() (*descriptor, error) {
	m, err := parseManifest(i.Manifest)
	if err != nil {
		return nil, err
	}
	return m.Config, nil
}

// addConfig takes over what the config knows, if it is the one that the manifest names.
func (i *Image) addConfig(data []byte) error {
	d, err := i.configDescriptor()
	if err != nil {
		return err
	}
	if err := verify(d.Digest, data); err != nil {
		return err
	}
	var c imageConfig
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("%w: config %s is not what it should be: %s", ErrUnsupported, d.Digest, oneLine(err.Error()))
	}
	if len(c.RootFS.DiffIDs) != len(i.Layers) {
		return fmt.Errorf("%w: %d layers but %d diff_ids in the config (media type %q)", ErrUnsupported, len(i.Layers), len(c.RootFS.DiffIDs), oneLine(d.MediaType))
	}
	for n, id := range c.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return fmt.Errorf("%w: diff_id %d: %w", ErrUnsupported, n, err)
		}
		i.Layers[n].DiffID = id.String()
	}
	i.Config = data
	i.Platform = oneLine(platform{c.OS, c.Architecture, c.Variant}.String())
	return nil
}

// verify compares data with the digest that names it.
func verify(want digest.Digest, data []byte) error {
	if err := want.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return fmt.Errorf("%w: want %s, got %s", ErrDigest, want, got)
	}
	return nil
}

// trimKind removes the sentinel's own words from the front of err's message, because Error says them already.
func trimKind(err error) error {
	if rest, ok := strings.CutPrefix(err.Error(), kindOf(err).Error()+": "); ok {
		return trimmed{errors.New(rest), err}
	}
	return err
}

type trimmed struct{ shown, cause error }

func (t trimmed) Error() string { return t.shown.Error() }
func (t trimmed) Unwrap() error { return t.cause }
