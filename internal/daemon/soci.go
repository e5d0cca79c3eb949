package daemon

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/microsandbox/msb-fs/layer"
	"github.com/microsandbox/msb-fs/remote"
)

// SOCI indexes are OCI artifacts with a zTOC for each layer that is worth it. Those of version 1 are referrers of the image, those
// of version 2 are named by an annotation of its manifest: soci/soci_index.go of soci-snapshotter.
const (
	sociArtifactV1 = "application/vnd.amazon.soci.index.v1+json"
	sociArtifactV2 = "application/vnd.amazon.soci.index.v2+json"
	sociZTOC       = "application/octet-stream"
	sociLayer      = "com.amazon.soci.image-layer-digest" // annotation of a zTOC
	sociIndex      = "com.amazon.soci.index-digest"       // annotation of an image's manifest
)

// sociOf is the SOCI index that img's manifest names, if it does.
func sociOf(img *remote.Image) []remote.Descriptor {
	var manifest struct {
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(img.Manifest, &manifest) != nil || manifest.Annotations[sociIndex] == "" {
		return nil
	}
	return []remote.Descriptor{{Digest: manifest.Annotations[sociIndex]}}
}

// soci takes a blob of a SOCI index: the zTOC of a layer that has no better index yet.
func (p *indexPull) soci(ctx context.Context, artifact *remote.Artifact, blob remote.Layer) error {
	l, ok := p.layers[blob.Annotations[sociLayer]]
	dir := p.images.home.Cache("layers")
	if !ok || blob.MediaType != sociZTOC || artifact.Type != sociArtifactV1 && artifact.Type != sociArtifactV2 || layer.Lazy(dir, descriptor(l)) {
		return nil
	}
	ztoc, err := p.client.ReadBlob(ctx, artifact.Reference, blob, p.access, maxIndexBlob)
	if err != nil {
		return err
	}
	return p.imported(layer.ImportZTOC(dir, l.Digest, l.Size, l.DiffID, bytes.NewReader(ztoc)))
}
