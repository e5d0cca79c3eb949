package daemon

import (
	"sort"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/remote"
)

// fetched is how many bytes have been asked of registries for o's layers since they were opened.
func (o *openImage) fetched() (n int64) {
	for _, l := range o.layers {
		n += l.blob.Stats().Bytes
	}
	return n
}

// usage is what has been used of o since its fetched was base.
func (o *openImage) usage(base int64) api.Usage {
	u := api.Usage{BytesFetched: o.fetched() - base, ImageBytes: size(o.Image), Layers: o.describe()}
	for _, n := range o.tree.Touched() {
		u.BytesTouched += n
	}
	for _, s := range o.tree.Stats().Stalls {
		u.Stalls = append(u.Stalls, api.Stall{Path: s.Path, MS: float64(s.Total.Microseconds()) / 1000, Count: s.Count})
	}
	sort.SliceStable(u.Stalls, func(i, j int) bool { return u.Stalls[i].MS > u.Stalls[j].MS })
	return u
}

// describe tells the state of each layer, bottom first.
func (o *openImage) describe() []api.Layer {
	out := make([]api.Layer, len(o.layers))
	for i, l := range o.layers {
		d := plain(o.Image.Layers[i])
		mode, reason := l.Mode()
		stats := l.blob.Stats()
		d.Mode, d.Reason, d.Fetched, d.Requests = string(mode), reason, stats.Bytes, stats.Requests
		d.Have, _ = l.Progress()
		if err := l.Err(); err != nil {
			d.Error = err.Error()
		}
		out[i] = d
	}
	return out
}

// plain is a layer as its manifest describes it.
func plain(l remote.Layer) api.Layer {
	return api.Layer{Digest: l.Digest, DiffID: l.DiffID, MediaType: l.MediaType, Size: l.Size}
}

// size is the compressed bytes of img's layers.
func size(img *remote.Image) (n int64) {
	for _, l := range img.Layers {
		n += l.Size
	}
	return n
}

// describeImage is img as users see it; its layers' state is that of open, where it is open.
func describeImage(img *remote.Image, open *openImage) api.Image {
	d := api.Image{Reference: img.Reference, Digest: img.Digest, Platform: img.Platform, MediaType: img.MediaType,
		Size: size(img), Config: img.Config}
	if open != nil {
		d.Layers = open.describe()
		return d
	}
	for _, l := range img.Layers {
		d.Layers = append(d.Layers, plain(l))
	}
	return d
}
