package daemon

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/ociarchive"
	"github.com/microsandbox/msb-fs/remote"
)

// postSave answers with an image as an archive, or writes it to an OCI image layout on disk.
func (d *daemon) postSave(w http.ResponseWriter, r *http.Request) error {
	var req api.SaveRequest
	if err := read(r, &req); err != nil {
		return err
	}
	if req.Format == api.FormatDir {
		if err := absolute("OCI layout", req.Layout); err != nil {
			return err
		}
	}
	o, err := d.openImage(r.Context(), req.ImageRequest)
	if err != nil {
		return err
	}
	defer d.release(o)
	img := archived(r.Context(), o)
	out := &body{w: w}
	switch req.Format {
	case "", api.FormatOCI:
		return out.end(ociarchive.WriteOCI(r.Context(), out, img))
	case api.FormatDocker:
		return out.end(ociarchive.WriteDocker(r.Context(), out, img, d.home.Cache("blobs")))
	case api.FormatDir:
		tag := ociarchive.Tag(img.Reference)
		if tag == "" {
			tag = "latest"
		}
		return writeLayout(r.Context(), req.Layout, tag, &madeImage{manifest: img.Manifest, blobs: append(img.Layers, img.Config)})
	default:
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("unknown format %q: use %s, %s or %s", req.Format, api.FormatOCI, api.FormatDir, api.FormatDocker)}
	}
}

// archived is o as it is written to an archive; its blobs can be read until ctx is done.
func archived(ctx context.Context, o *openImage) ociarchive.Content {
	img := ociarchive.Content{Reference: o.Reference, Manifest: remote.NewContent(o.MediaType, o.Manifest, nil), Config: remote.NewContent("", o.Config, nil)}
	for i, l := range o.layers {
		img.Layers = append(img.Layers, remote.Content{Digest: l.blob.Digest(), Size: l.blob.Size(), Open: func() (io.ReadCloser, error) { return l.blob.Open(ctx, 0) }})
		img.DiffIDs = append(img.DiffIDs, o.Image.Layers[i].DiffID)
	}
	return img
}
