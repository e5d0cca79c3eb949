package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// blobFiles keeps blobs as <dir>/<algorithm>/<hex>. Unlike the disk handler of the package it serves, it does not hash
// a blob on every request, and it answers ranges.
type blobFiles struct{ dir string }

var _ interface {
	ggcr.BlobHandler
	ggcr.BlobStatHandler
	ggcr.BlobPutHandler
	ggcr.BlobDeleteHandler
} = (*blobFiles)(nil)

func (b *blobFiles) path(h v1.Hash) string { return filepath.Join(b.dir, h.Algorithm, h.Hex) }

// Stat is the size of a blob.
func (b *blobFiles) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	fi, err := os.Stat(b.path(h))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, ggcr.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// Get opens a blob.
func (b *blobFiles) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	f, err := os.Open(b.path(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ggcr.ErrNotFound
	}
	return f, err
}

// Put stores a blob whose digest the caller's reader verifies.
func (b *blobFiles) Put(_ context.Context, _ string, h v1.Hash, rc io.ReadCloser) error {
	defer rc.Close()
	if err := os.MkdirAll(filepath.Dir(b.path(h)), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(b.dir, "upload-")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, rc)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), b.path(h))
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("store blob %s: %w", h, err)
	}
	return nil
}

// Delete forgets a blob.
func (b *blobFiles) Delete(_ context.Context, _ string, h v1.Hash) error { return os.Remove(b.path(h)) }

// serve answers a GET or HEAD of a blob, ranges included.
func (b *blobFiles) serve(w http.ResponseWriter, r *http.Request, digest string) {
	h, err := v1.NewHash(digest)
	if err != nil {
		writeError(w, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	f, err := os.Open(b.path(h))
	if err != nil {
		writeError(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	defer f.Close()
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}

// writeError answers with the error document of the distribution specification.
func writeError(w http.ResponseWriter, status int, code, message string) {
	body := fmt.Sprintf(`{"errors":[{"code":%s,"message":%s}]}`, strconv.Quote(code), strconv.Quote(message))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	io.WriteString(w, body)
}

// AddImage stores an image as "repo:tag" ("repo" alone is repo:latest), past the link, credentials and faults. Layers go
// to files as they are read and are never whole in memory.
func (s *Server) AddImage(ref string, img v1.Image) (v1.Hash, error) {
	layers, err := img.Layers()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	for _, l := range layers {
		if err := s.AddLayer(l); err != nil {
			return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
		}
	}
	cfg, err := partial.ConfigLayer(img)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	if err := s.AddLayer(cfg); err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	return s.addManifest(ref, img)
}

// AddLayer stores one blob.
func (s *Server) AddLayer(l v1.Layer) error {
	h, err := l.Digest()
	if err != nil {
		return err
	}
	if _, err := os.Stat(s.blobs.path(h)); err == nil {
		return nil
	}
	rc, err := l.Compressed()
	if err != nil {
		return err
	}
	return s.blobs.Put(context.Background(), "", h, rc)
}

// AddBlob stores bytes as a blob and returns its digest.
func (s *Server) AddBlob(b []byte) (string, error) {
	h, _, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		return "", err
	}
	return h.String(), s.blobs.Put(context.Background(), "", h, io.NopCloser(bytes.NewReader(b)))
}

// AddBlobFile makes the file at path the blob called digest, without looking into it: by a hard link where that works,
// else by a symbolic one. A test that wants a corrupt blob gives a file of other content.
func (s *Server) AddBlobFile(digest, path string) error {
	h, err := v1.NewHash(digest)
	if err != nil {
		return fmt.Errorf("add blob: %w", err)
	}
	to := s.blobs.path(h)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("add blob: %w", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return fmt.Errorf("add blob: %w", err)
	}
	err = os.Link(path, to)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = os.Symlink(path, to)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add blob: %w", err)
	}
	return nil
}

// RemoveBlob makes a blob unknown.
func (s *Server) RemoveBlob(digest string) error {
	h, err := v1.NewHash(digest)
	if err != nil {
		return fmt.Errorf("remove blob: %w", err)
	}
	return os.Remove(s.blobs.path(h))
}

// AddIndex stores an index as "repo:tag", with the images and indexes in it.
func (s *Server) AddIndex(ref string, idx v1.ImageIndex) (v1.Hash, error) {
	im, err := idx.IndexManifest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	repo, _ := splitRef(ref)
	for _, d := range im.Manifests {
		child := repo + "@" + d.Digest.String()
		switch {
		case d.MediaType.IsIndex():
			sub, err := idx.ImageIndex(d.Digest)
			if err != nil {
				return v1.Hash{}, fmt.Errorf("add %s: %w", child, err)
			}
			if _, err := s.AddIndex(child, sub); err != nil {
				return v1.Hash{}, err
			}
		case d.MediaType.IsImage():
			img, err := idx.Image(d.Digest)
			if err != nil {
				return v1.Hash{}, fmt.Errorf("add %s: %w", child, err)
			}
			if _, err := s.AddImage(child, img); err != nil {
				return v1.Hash{}, err
			}
		}
	}
	return s.addManifest(ref, idx)
}

// AddLayout stores the first image of an OCI layout directory as "repo:tag". Its blobs stay where they are (see
// AddBlobFile), so the directory must outlive the server.
func (s *Server) AddLayout(ref, dir string) (v1.Hash, error) {
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	im, err := idx.IndexManifest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	if len(im.Manifests) == 0 {
		return v1.Hash{}, fmt.Errorf("add %s: no image in %s", ref, dir)
	}
	img, err := idx.Image(im.Manifests[0].Digest)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	m, err := img.Manifest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := s.AddBlobFile(d.Digest.String(), filepath.Join(dir, "blobs", d.Digest.Algorithm, d.Digest.Hex)); err != nil {
			return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
		}
	}
	return s.addManifest(ref, img)
}

// addManifest stores the manifest of an image or an index.
func (s *Server) addManifest(ref string, m interface {
	partial.WithRawManifest
	partial.Describable
}) (v1.Hash, error) {
	raw, err := m.RawManifest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	mt, err := m.MediaType()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	return s.AddManifest(ref, string(mt), raw)
}

// AddManifest stores raw bytes as the manifest of "repo:tag" or "repo@digest". Nothing checks them.
func (s *Server) AddManifest(ref, mediaType string, raw []byte) (v1.Hash, error) {
	repo, id := splitRef(ref)
	if _, err := name.NewRepository("registry.test/" + repo); err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	r, err := http.NewRequest(http.MethodPut, "/v2/"+repo+"/manifests/"+id, bytes.NewReader(raw))
	if err != nil {
		return v1.Hash{}, fmt.Errorf("add %s: %w", ref, err)
	}
	r.Header.Set("Content-Type", mediaType)
	a := &answer{status: http.StatusOK, header: http.Header{}}
	s.inner.ServeHTTP(a, r)
	if a.status >= 300 {
		return v1.Hash{}, fmt.Errorf("add %s: %d %s", ref, a.status, strings.TrimSpace(a.body.String()))
	}
	h, _, err := v1.SHA256(bytes.NewReader(raw))
	return h, err
}

// splitRef cuts "repo:tag" or "repo@digest".
func splitRef(ref string) (repo, id string) {
	if repo, id, ok := strings.Cut(ref, "@"); ok {
		return repo, id
	}
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i], ref[i+1:]
	}
	return ref, "latest"
}

// answer takes what a handler called in process says.
type answer struct {
	status int
	header http.Header
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }
