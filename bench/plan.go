package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// link is a path to a registry.
type link struct {
	name string
	mbit float64
	rtt  time.Duration
}

// chooseLinks looks up links by name.
func chooseLinks(names string) ([]link, error) {
	known := map[string]link{
		"100m": {"100 Mbit/s, 20 ms", 100, 20 * time.Millisecond},
		"1g":   {"1 Gbit/s, 1 ms", 1000, time.Millisecond},
		"far":  {"1 Gbit/s, 100 ms", 1000, 100 * time.Millisecond},
	}
	var out []link
	for _, n := range strings.Split(names, ",") {
		l, ok := known[n]
		if !ok {
			return nil, fmt.Errorf("unknown link %q: 100m, 1g or far", n)
		}
		out = append(out, l)
	}
	return out, nil
}

// plan is what to measure.
type plan struct {
	runs    int
	forms   []testimage.Form
	links   []link
	systems []system
}

// Result is one cold start, one line of a results file.
type Result struct {
	Time     time.Time `json:"time"`
	System   string    `json:"system"`
	Image    string    `json:"image"`
	Form     string    `json:"form"`
	Link     string    `json:"link"`
	Run      int       `json:"run"`
	Seconds  float64   `json:"seconds"`  // from asking until the program's first line
	Bytes    int64     `json:"bytes"`    // over the link by then, headers included
	Reqs     int64     `json:"requests"` // by then
	Size     int64     `json:"image_bytes"`
	Wire     float64   `json:"wire_seconds"`       // that the whole image takes on this link
	Load     string    `json:"load"`               // of the machine, as /proc/loadavg says, before the run
	Version  string    `json:"version,omitempty"`  // of the system
	Complete float64   `json:"complete,omitempty"` // seconds until every byte was local; absent where that is when it starts
}

// run measures everything and appends each result to the file out as it comes.
func (p plan) run(ctx context.Context, out string) ([]Result, error) {
	dir, err := testimage.CacheDir()
	if err != nil {
		return nil, err
	}
	stack := testimage.Python()
	layouts := map[testimage.Form]string{}
	for _, form := range p.forms {
		if layouts[form], err = stack.Layout(ctx, dir, form, os.Stderr); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return nil, fmt.Errorf("write results: %w", err)
	}
	file, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("write results: %w", err)
	}
	defer file.Close()
	var all []Result
	for n := range p.runs {
		for _, l := range p.links {
			for _, form := range p.forms {
				for i := range p.systems {
					sys := p.systems[(i+n)%len(p.systems)] // nobody is always first
					r, err := once(ctx, sys, stack.Name, form, layouts[form], l)
					if err != nil {
						return all, fmt.Errorf("%s, %s, %s: %w", sys.name, form, l.name, err)
					}
					r.Run = n + 1
					all = append(all, r)
					fmt.Fprintf(os.Stderr, "%-24s %-8s %-18s %7.2f s %7.1f MB %4d requests\n", r.System, r.Form, r.Link, r.Seconds, float64(r.Bytes)/1e6, r.Reqs)
					if err := json.NewEncoder(file).Encode(r); err != nil {
						return all, fmt.Errorf("write results: %w", err)
					}
				}
			}
		}
	}
	return all, nil
}

// once is one cold start from nothing: a registry, a link and a home of its own.
func once(ctx context.Context, sys system, image string, form testimage.Form, layout string, l link) (r Result, err error) {
	path := registry.NewLink(int64(l.mbit*1e6/8), l.rtt)
	srv, err := registry.Start(registry.Options{Link: path})
	if err != nil {
		return r, err
	}
	defer srv.Close()
	digest, err := srv.AddLayout("bench/"+image, layout)
	if err != nil {
		return r, err
	}
	work, err := os.MkdirTemp("", "msb-bench-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	load, _ := os.ReadFile("/proc/loadavg")
	r = Result{
		Time: time.Now().UTC(), System: sys.name, Image: image, Form: string(form), Link: l.name,
		Load: strings.Join(strings.Fields(string(load))[:3], " "), Version: sys.version,
	}
	if r.Size, err = imageSize(layout, digest.Hex); err != nil {
		return r, err
	}
	r.Wire = float64(r.Size) * 8 / (l.mbit * 1e6)

	start := time.Now()
	first := &firstLine{ready: func() {
		r.Seconds = time.Since(start).Seconds()
		r.Bytes, r.Reqs = path.Stats().Down, srv.Stats().Requests
	}}
	t := &trial{dir: work, ref: srv.Host() + "/bench/" + image, form: form, out: first, start: start}
	err = sys.start(ctx, t)
	if err == nil && r.Seconds == 0 {
		err = errors.New("the program printed nothing")
	}
	if err == nil && sys.complete != nil {
		err = sys.complete(ctx, t)
		r.Complete = time.Since(start).Seconds()
	}
	if sys.wipe != nil {
		err = errors.Join(err, sys.wipe(t))
	}
	return r, err
}

// firstLine calls ready when the first byte passes.
type firstLine struct {
	ready func()
	said  bool
}

func (f *firstLine) Write(p []byte) (int, error) {
	if !f.said && len(p) > 0 {
		f.said = true
		f.ready()
	}
	return len(p), nil
}

// imageSize is the compressed size of all layers of an image in a layout.
func imageSize(layout, hex string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(layout, "blobs", "sha256", hex))
	if err != nil {
		return 0, err
	}
	var m struct {
		Layers []struct {
			Size int64 `json:"size"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return 0, err
	}
	var n int64
	for _, l := range m.Layers {
		n += l.Size
	}
	return n, nil
}
