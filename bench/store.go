package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// store is where images are kept between runs.
type store struct {
	dir      string
	bin      string // of this project's programs
	progress io.Writer
}

func newStore(bin string, progress io.Writer) (store, error) {
	dir, err := testimage.CacheDir()
	return store{dir: dir, bin: bin, progress: progress}, err
}

// image is a workload in a form, ready to be served.
type image struct {
	workload
	form      form
	layout    string // directory
	artifacts string // directory of what is published beside it; "" is nothing

	digest v1.Hash // of its manifest
	size   int64   // compressed bytes of all layers
	most   int64   // of the largest
	layers int
	config v1.Config
}

// ref is the image's name in a registry of the bench's own.
func (i *image) repo() string { return "bench/" + i.name }

// errNotBuilt is of an image in a form that nothing here can make.
var errNotBuilt = errors.New("cannot be made here")

// image builds w in form f, when the store does not have it yet.
func (s store) image(ctx context.Context, w workload, f form) (*image, error) {
	dir, err := w.layout(ctx, s, f.layout)
	if err != nil {
		return nil, err
	}
	img := &image{workload: w, form: f, layout: dir}
	if err := img.read(); err != nil {
		return nil, err
	}
	if len(img.argv()) == 0 {
		return nil, fmt.Errorf("image %s says no command to run: name one after --", w.from.ref)
	}
	switch f.beside {
	case indexOurs:
		img.artifacts = dir + "-index"
		if !have(img.artifacts) {
			err = s.publishIndex(ctx, img)
		}
	case indexSOCI:
		img.artifacts = dir + "-soci"
		if !have(img.artifacts) {
			err = s.publishSOCI(ctx, img)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("image %s as %s: %w", w.name, f.key, err)
	}
	return img, nil
}

// layout is the directory of the workload's image in a form of layers.
func (w workload) layout(ctx context.Context, s store, f testimage.Form) (string, error) {
	if w.from != nil {
		return w.from.layout(ctx, s, f)
	}
	if f == asIs {
		return "", fmt.Errorf("image %s has no form of its own: %w", w.name, errNotBuilt)
	}
	return w.stack.Layout(ctx, s.dir, f, s.progress)
}

// read fills in what the layout says.
func (i *image) read() error {
	idx, err := layout.ImageIndexFromPath(i.layout)
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	list, err := idx.IndexManifest()
	if err != nil || len(list.Manifests) == 0 {
		return fmt.Errorf("read image: %s has none: %w", i.layout, err)
	}
	i.digest = list.Manifests[0].Digest
	img, err := idx.Image(i.digest)
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	m, err := img.Manifest()
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	i.config, i.layers = c.Config, len(m.Layers)
	if i.from != nil {
		i.from.override(&i.config)
	}
	for _, l := range m.Layers {
		i.size += l.Size
		i.most = max(i.most, l.Size)
	}
	return nil
}

// serve starts a registry with the image behind a link; the reference is the image's name in it.
func (i *image) serve(link *registry.Link) (*registry.Server, string, error) {
	s, err := registry.Start(registry.Options{Link: link})
	if err != nil {
		return nil, "", err
	}
	_, err = s.AddLayout(i.repo()+":latest", i.layout)
	if err == nil && i.artifacts != "" {
		err = addArtifacts(s, i.repo(), i.artifacts)
	}
	if err != nil {
		return nil, "", errors.Join(err, s.Close())
	}
	return s, s.Host() + "/" + i.repo() + ":latest", nil
}

// publishIndex makes this project's index of img and saves it.
func (s store) publishIndex(ctx context.Context, img *image) error {
	fmt.Fprintf(s.progress, "indexing image %s\n", img.name)
	plain := *img
	plain.artifacts = ""
	srv, ref, err := plain.serve(nil)
	if err != nil {
		return err
	}
	defer srv.Close()
	home, err := os.MkdirTemp("", "msb-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	msb := func(args ...string) error {
		cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "msb-fs"), args...)
		cmd.Env = append(os.Environ(), "MSB_HOME="+home)
		return do(cmd, nil)
	}
	err = msb("pull", "--insecure", "-q", ref)
	if err == nil {
		err = msb("index", "push", "--insecure", ref)
	}
	err = errors.Join(err, msb("stop"))
	if err != nil {
		return err
	}
	return captureArtifacts(ctx, srv, img.repo(), img.digest.String(), img.artifacts)
}

// facts are what is true of the image of w, measured once and kept beside it.
func (s store) facts(ctx context.Context, w workload) (Facts, error) {
	key := "gzip"
	if w.from != nil {
		key = string(asIs)
	}
	fs, err := chooseForms(key)
	if err != nil {
		return Facts{}, err
	}
	img, err := s.image(ctx, w, fs[0])
	if err != nil {
		return Facts{}, err
	}
	file := img.layout + "-facts-" + factsKey(img) + ".json"
	if known, err := readLines[Facts](file); err == nil && len(known) > 0 {
		return known[0], nil
	}
	fmt.Fprintf(s.progress, "looking what a start of %s reads\n", w.name)
	f, err := measureFacts(ctx, img)
	if err != nil {
		return f, err
	}
	return f, appendLine(file, f)
}

// factsKey is of what facts depend on beside the image.
func factsKey(img *image) string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("2 %q %q", img.argv(), img.ready)))
	return hex.EncodeToString(sum[:4])
}
