package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/microsandbox/msb-fs/internal/testimage"
)

// source is an image of somebody else's registry. It is copied once, with the credentials that Docker and podman keep, and is then
// served as the bench's own images are, so that the link is the one that was asked for.
type source struct {
	ref      string
	insecure bool
	argv     []string // instead of the image's command; nil is that
}

// workload is the image's own program, ready at a line that begins with ready; "" is at its first byte, or when it ends without one.
func (src *source) workload(ready string) workload {
	short := src.ref[strings.LastIndex(src.ref, "/")+1:]
	if !strings.ContainsAny(short, ":@") {
		short += "-latest" // not the name of an image of the bench's own
	}
	short = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(short))
	return workload{name: strings.Trim(short, "-"), about: "the command of " + src.ref, ready: ready, from: src}
}

// override puts the command that was asked for in the place of the image's.
func (src *source) override(c *v1.Config) {
	if src.argv != nil {
		c.Entrypoint, c.Cmd = nil, src.argv
	}
}

// layout copies the image, and converts its layers where form is not what they are.
func (src *source) layout(ctx context.Context, s store, form testimage.Form) (string, error) {
	opts := []name.Option{name.WithDefaultRegistry("docker.io")}
	if src.insecure {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(src.ref, opts...)
	if err != nil {
		return "", err
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH})}
	if src.insecure {
		options = append(options, remote.WithTransport(&http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it was asked for
		}))
	}
	img, err := remote.Image(ref, options...)
	if err != nil {
		return "", fmt.Errorf("copy image %s: %w", src.ref, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("copy image %s: %w", src.ref, err)
	}
	dir := filepath.Join(s.dir, "copy-"+digest.Hex[:12])
	if !have(filepath.Join(dir, "index.json")) {
		fmt.Fprintf(s.progress, "copying image %s\n", src.ref)
		if err := os.MkdirAll(s.dir, 0o755); err != nil {
			return "", err
		}
		if err := testimage.WriteLayout(dir, "latest", img); err != nil {
			return "", fmt.Errorf("copy image %s: %w", src.ref, err)
		}
	}
	if form == asIs {
		return dir, nil
	}
	out := dir + "-" + string(form)
	if have(filepath.Join(out, "index.json")) {
		return out, nil
	}
	fmt.Fprintf(s.progress, "writing image %s as %s\n", src.ref, form)
	return out, convert(ctx, dir, digest, out, form)
}

// convert writes the image of a layout in another form.
func convert(ctx context.Context, dir string, digest v1.Hash, out string, form testimage.Form) error {
	work, err := os.MkdirTemp(filepath.Dir(out), ".convert-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	p, err := layout.FromPath(dir)
	if err != nil {
		return fmt.Errorf("convert image: %w", err)
	}
	img, err := p.Image(digest)
	if err != nil {
		return fmt.Errorf("convert image: %w", err)
	}
	f, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("convert image: %w", err)
	}
	old, err := img.Layers()
	if err != nil {
		return fmt.Errorf("convert image: %w", err)
	}
	var layers []*testimage.Layer
	for i, l := range old {
		if err := ctx.Err(); err != nil {
			return err
		}
		tar := filepath.Join(work, fmt.Sprint(i, ".tar"))
		if err := unpackTar(l, tar); err != nil {
			return fmt.Errorf("convert image: layer %d: %w", i, err)
		}
		layer, err := testimage.FileLayer(form, tar, work)
		if err = errors.Join(err, os.Remove(tar)); err != nil {
			return fmt.Errorf("convert image: %w", err)
		}
		layers = append(layers, layer)
	}
	c := f.Config
	made, err := testimage.Image(testimage.Config{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir, User: c.User, OS: f.OS, Architecture: f.Architecture,
	}, layers...)
	if err != nil {
		return fmt.Errorf("convert image: %w", err)
	}
	return testimage.WriteLayout(out, "latest", made)
}

// unpackTar writes a layer's tar to path.
func unpackTar(l v1.Layer, path string) error {
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	err = writeFile(path, rc)
	return errors.Join(err, rc.Close())
}
