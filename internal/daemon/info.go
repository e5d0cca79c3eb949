package daemon

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/microsandbox/msb-fs/internal/api"
)

func (d *daemon) getImages(w http.ResponseWriter, r *http.Request) error {
	all, err := d.images.pins.all()
	if err != nil {
		return err
	}
	open := d.images.byDigest()
	out := []api.Image{}
	for _, p := range all {
		if p.Image == nil {
			continue
		}
		desc := describeImage(p.Image, open[p.Digest])
		desc.Reference, desc.Pinned, desc.Config = p.Reference, p.Pinned, nil
		out = append(out, desc)
	}
	return write(w, out)
}

func (d *daemon) postInspect(w http.ResponseWriter, r *http.Request) error {
	var req api.ImageRequest
	if err := read(r, &req); err != nil {
		return err
	}
	o, err := d.openImage(r.Context(), req)
	if err != nil {
		return err
	}
	defer d.release(o)
	d.completer.streams(o)
	return write(w, describeImage(o.Image, o))
}

// getConfig answers with the config of the image with that manifest digest.
func (d *daemon) getConfig(w http.ResponseWriter, r *http.Request) error {
	img, err := d.images.pins.manifest(r.PathValue("digest"))
	if err != nil {
		return err
	}
	if img == nil {
		return &api.Error{Code: api.CodeNotCached, Message: "image not cached: " + r.PathValue("digest")}
	}
	return write(w, img.Config)
}

// getProfiles answers with what putProfiles of another daemon takes.
func (d *daemon) getProfiles(w http.ResponseWriter, r *http.Request) error {
	data, err := profiles{d.images.pins.db}.export(r.PathValue("digest"))
	if err != nil {
		return err
	}
	return write(w, api.Profiles{Data: data})
}

func (d *daemon) putProfiles(w http.ResponseWriter, r *http.Request) error {
	var req api.Profiles
	if err := read(r, &req); err != nil {
		return err
	}
	digest := r.PathValue("digest")
	if _, err := v1.NewHash(digest); err != nil {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%q is no digest", digest)}
	}
	if err := (profiles{d.images.pins.db}).adopt(digest, req.Data); err != nil {
		return &api.Error{Code: api.CodeInvalid, Message: err.Error()}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *daemon) getStats(w http.ResponseWriter, r *http.Request) error {
	c, net := d.cache.Stats(), d.images.registries.stats()
	s := api.Stats{Hits: c.Hits, Misses: c.Misses, BytesFetched: net.Bytes, Requests: net.Requests, CacheBytes: c.Bytes,
		CacheChunks: c.Chunks, Refetched: c.Refetched, RSS: rss(), Mounts: []api.MountStats{}, Sandboxes: []api.MountStats{}, Images: []api.Image{}}
	if c.Bytes > 0 {
		s.DedupRatio = float64(c.Offered) / float64(c.Bytes)
	}
	for _, m := range d.mounts.list() {
		s.Mounts = append(s.Mounts, api.MountStats{Name: m.Dir, Reference: m.Reference, Usage: m.image.usage(m.base)})
	}
	for _, sb := range d.sandboxes.list() {
		u, ref := sb.usage()
		s.Sandboxes = append(s.Sandboxes, api.MountStats{Name: sb.id, Reference: ref, Usage: u})
	}
	for _, o := range d.images.byDigest() {
		desc := describeImage(o.Image, o)
		desc.Config = nil
		s.Images = append(s.Images, desc)
	}
	return write(w, s)
}

// rss is this process's resident memory in bytes, as /proc/self/statm has it (proc(5)); 0 where that cannot be read.
func rss() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
