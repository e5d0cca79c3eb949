package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// realHome is the variable with the home directory that tests are kept from.
const realHome = "MSB_TEST_HOME"

func TestMain(m *testing.M) {
	// No test may see this machine's credentials.
	dir, err := os.MkdirTemp("", "remote-test-*")
	if err != nil {
		panic(err)
	}
	os.Setenv(realHome, os.Getenv("HOME"))
	for _, v := range []string{"HOME", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"} {
		os.Setenv(v, dir)
	}
	os.Unsetenv("REGISTRY_AUTH_FILE")
	// Most tests of faults wait for something; two at a time would take long.
	flag.Parse()
	flag.Set("test.parallel", "12")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// testRegistry is a small registry: a map of paths to bytes, served by a real HTTP server. Its hook sees every request
// first.
type testRegistry struct {
	*httptest.Server
	t    *testing.T
	hook func(w http.ResponseWriter, r *http.Request) (handled bool)

	mu       sync.Mutex
	content  map[string][]byte // by path
	types    map[string]string // Content-Type by path
	requests []string
}

func newTestRegistry(t *testing.T) *testRegistry {
	r := &testRegistry{t: t, content: map[string][]byte{}, types: map[string]string{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Server.Close)
	return r
}

func (r *testRegistry) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(r.URL, "http://"), "https://")
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	line := req.Method + " " + req.URL.Path
	if rng := req.Header.Get("Range"); rng != "" {
		line += " " + rng
	}
	r.requests = append(r.requests, line)
	hook, body, ok, kind := r.hook, r.content[req.URL.Path], r.content[req.URL.Path] != nil, r.types[req.URL.Path]
	r.mu.Unlock()
	if hook != nil && hook(w, req) {
		return
	}
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
		return
	}
	if kind != "" {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Docker-Content-Digest", sha(body))
		w.Header().Set("Etag", `"`+sha(body)+`"`)
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
}

func (r *testRegistry) put(path, kind string, body []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.content[path], r.types[path] = body, kind
}

// seen returns the requests so far, and forgets them.
func (r *testRegistry) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.requests
	r.requests = nil
	return s
}

func (r *testRegistry) blob(repo string, body []byte) string {
	r.put("/v2/"+repo+"/blobs/"+sha(body), "", body)
	return sha(body)
}

func (r *testRegistry) manifest(repo, tag string, doc any, kind string) []byte {
	body, err := json.Marshal(doc)
	if err != nil {
		r.t.Fatal(err)
	}
	r.put("/v2/"+repo+"/manifests/"+sha(body), kind, body)
	if tag != "" {
		r.put("/v2/"+repo+"/manifests/"+tag, kind, body)
	}
	return body
}

// image puts an image with the given layers into the registry and returns its manifest.
func (r *testRegistry) image(repo, tag, platformText string, layers ...[]byte) []byte {
	p := strings.Split(platformText, "/")
	config := map[string]any{"os": p[0], "architecture": p[1], "config": map[string]any{"Cmd": []string{"sh"}}}
	var ids []string
	var descs []map[string]any
	for _, l := range layers {
		ids = append(ids, sha(append([]byte("tar of "), l[:min(len(l), 64)]...)))
		descs = append(descs, map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": r.blob(repo, l), "size": len(l)})
	}
	config["rootfs"] = map[string]any{"type": "layers", "diff_ids": ids}
	configJSON, _ := json.Marshal(config)
	return r.manifest(repo, tag, map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "layers": descs,
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": r.blob(repo, configJSON), "size": len(configJSON)},
	}, ociManifest)
}

func sha(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func randomBytes(n int) []byte {
	b := make([]byte, n)
	seed := [32]byte{1}
	rand.NewChaCha8(seed).Read(b)
	return b
}

func newTestClient(t *testing.T, o Options) *Client {
	t.Helper()
	if o.StallTimeout == 0 {
		o.StallTimeout = 5 * time.Second
	}
	c := NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

// testBlob puts a blob of n random bytes in a new registry.
func testBlob(t *testing.T, n int, o Options) (*testRegistry, *Client, *Blob, []byte) {
	t.Helper()
	r := newTestRegistry(t)
	data := randomBytes(n)
	r.image("a/b", "1", "linux/amd64", data)
	c := newTestClient(t, o)
	img, err := c.Resolve(context.Background(), r.host()+"/a/b:1", Access{Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	r.seen()
	return r, c, c.Blob(img, img.Layers[0], Access{}), data
}

// checkLeaks fails t when it leaves goroutines behind. It is called first, so that it looks last.
func checkLeaks(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// discardLog silences a server whose clients are meant to go wrong.
func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }
