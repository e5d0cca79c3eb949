package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// form is how an image lies in the registry.
type form struct {
	key    string
	layout testimage.Form // of its layers; asIs is that of the image that was named
	beside string         // what is published beside it: indexOurs, indexSOCI or ""
	lazy   bool           // a lazy system that can read it has no reason to fetch it whole
}

// What may be published beside an image.
const (
	indexOurs = "index"
	indexSOCI = "soci"
)

// asIs is the layout form of an image that the bench has not made.
const asIs testimage.Form = "as-is"

func forms() []form {
	return []form{
		{key: "gzip", layout: testimage.Gzip},
		{key: "zstd", layout: testimage.Zstd},
		{key: "estargz", layout: testimage.EStargz, lazy: true},
		{key: "zstd-chunked", layout: testimage.ZstdChunked, lazy: true},
		{key: "gzip+index", layout: testimage.Gzip, beside: indexOurs, lazy: true},
		{key: "gzip+soci", layout: testimage.Gzip, beside: indexSOCI, lazy: true},
		{key: "as-is", layout: asIs},
	}
}

// chooseForms looks up forms by their keys, separated by commas.
func chooseForms(keys string) ([]form, error) {
	return choose("form", keys, forms(), func(f form) string { return f.key })
}

// choose picks from all what keys, separated by commas, name, in their order.
func choose[T any](what, keys string, all []T, key func(T) string) ([]T, error) {
	var out []T
	for k := range strings.SplitSeq(keys, ",") {
		i := slices.IndexFunc(all, func(v T) bool { return key(v) == strings.TrimSpace(k) })
		if i < 0 {
			var known []string
			for _, v := range all {
				known = append(known, key(v))
			}
			return nil, fmt.Errorf("unknown %s %q: %s", what, k, strings.Join(known, ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// artifact is something published beside an image: a manifest whose subject is the image's, and its blobs.
type artifact struct {
	MediaType string   `json:"media_type"`
	Manifest  []byte   `json:"manifest"`
	Blobs     []string `json:"blobs"` // digests; the files are in blobs/, named by digest
}

// artifactFile is what a directory of artifacts has beside blobs.
const artifactFile = "artifacts.json"

// captureArtifacts saves what is published in the registry s beside repo@digest into dir, which appears only when it is whole.
func captureArtifacts(ctx context.Context, s *registry.Server, repo, digest, dir string) error {
	part := dir + ".part"
	defer os.RemoveAll(part)
	if err := errors.Join(os.RemoveAll(part), os.MkdirAll(filepath.Join(part, "blobs"), 0o755)); err != nil {
		return err
	}
	subject, err := name.NewDigest(s.Host()+"/"+repo+"@"+digest, name.Insecure)
	if err != nil {
		return err
	}
	idx, err := remote.Referrers(subject, remote.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("list what is beside %s: %w", subject, err)
	}
	list, err := idx.IndexManifest()
	if err != nil {
		return err
	}
	if len(list.Manifests) == 0 {
		return fmt.Errorf("nothing has been published beside %s", subject)
	}
	var all []artifact
	for _, d := range list.Manifests {
		a, err := captureArtifact(ctx, subject.Context().Digest(d.Digest.String()), filepath.Join(part, "blobs"))
		if err != nil {
			return fmt.Errorf("save %s: %w", d.Digest, err)
		}
		all = append(all, a)
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(part, artifactFile), raw, 0o644); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

func captureArtifact(ctx context.Context, ref name.Digest, blobs string) (artifact, error) {
	d, err := remote.Get(ref, remote.WithContext(ctx))
	if err != nil {
		return artifact{}, err
	}
	a := artifact{MediaType: string(d.MediaType), Manifest: d.Manifest}
	var m v1.Manifest
	if err := json.Unmarshal(d.Manifest, &m); err != nil {
		return a, err
	}
	for _, b := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		l, err := remote.Layer(ref.Context().Digest(b.Digest.String()), remote.WithContext(ctx))
		if err != nil {
			return a, err
		}
		rc, err := l.Compressed()
		if err != nil {
			return a, err
		}
		err = writeFile(filepath.Join(blobs, b.Digest.Hex), rc)
		if err = errors.Join(err, rc.Close()); err != nil {
			return a, err
		}
		a.Blobs = append(a.Blobs, b.Digest.String())
	}
	return a, nil
}

func writeFile(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// addArtifacts publishes what captureArtifacts has saved in dir.
func addArtifacts(s *registry.Server, repo, dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, artifactFile))
	if err != nil {
		return err
	}
	var all []artifact
	if err := json.Unmarshal(raw, &all); err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, a := range all {
		for _, digest := range a.Blobs {
			_, hex, _ := strings.Cut(digest, ":")
			if err := s.AddBlobFile(digest, filepath.Join(dir, "blobs", hex)); err != nil {
				return err
			}
		}
		h, _, err := v1.SHA256(strings.NewReader(string(a.Manifest)))
		if err != nil {
			return err
		}
		if _, err := s.AddManifest(repo+"@"+h.String(), a.MediaType, a.Manifest); err != nil {
			return err
		}
	}
	return nil
}

// have says whether path exists.
func have(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
