package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/microsandbox/msb-fs/internal/registry"
)

// startDebianRegistry runs Debian's docker-registry with TLS and htpasswd (user u, password p) and returns its host.
func startDebianRegistry(t *testing.T, ca *testCA) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is missing: apt-get install docker-registry")
	}
	htpasswd, err := exec.LookPath("htpasswd")
	if err != nil {
		t.Skip("htpasswd is missing: apt-get install apache2-utils")
	}
	dir := t.TempDir()
	users, err := exec.Command(htpasswd, "-nbB", "-C", "4", "u", "p").Output()
	if err != nil {
		t.Fatal(err)
	}
	cert, key := ca.issue(t, "server")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := ln.Addr().String()
	ln.Close()
	config := fmt.Sprintf(`version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: "%[1]s/data"}}
http: {addr: %[2]q, tls: {certificate: "%[1]s/cert.pem", key: "%[1]s/key.pem"}}
auth: {htpasswd: {realm: test, path: "%[1]s/users"}}
`, dir, host)
	for name, data := range map[string][]byte{"users": users, "cert.pem": cert, "key.pem": key, "config.yml": []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var output bytes.Buffer
	cmd := exec.Command(program, "serve", filepath.Join(dir, "config.yml"))
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("docker-registry said: %s", output.Bytes())
		}
	})
	for range 500 {
		conn, err := net.Dial("tcp", host)
		if err == nil {
			conn.Close()
			return host
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("docker-registry does not listen: %s", output.Bytes())
	return ""
}

// The same things work with registries of three kinds: push an image, resolve and revalidate it, read it by range and
// in order, attach an artifact to it and find that again.
func TestInterop(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	login := Access{Username: "u", Password: "p", CACerts: ca.pem, Platform: "linux/amd64"}
	for _, tt := range []struct {
		name  string
		start func(t *testing.T) string
		a     Access
	}{
		{"Debian docker-registry, TLS, htpasswd", func(t *testing.T) string { return startDebianRegistry(t, ca) }, login},
		{"go-containerregistry", func(t *testing.T) string {
			s := httptest.NewServer(ggcr.New(ggcr.Logger(discardLog())))
			t.Cleanup(s.Close)
			return strings.TrimPrefix(s.URL, "http://")
		}, amd64},
		{"embedded, bearer tokens, object store", func(t *testing.T) string {
			s, err := registry.Start(registry.Options{ObjectStore: true, Auth: registry.Auth{Username: "u", Password: "p", Bearer: true}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s.Host()
		}, Access{Username: "u", Password: "p", Platform: "linux/amd64"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := tt.start(t)
			c := newTestClient(t, Options{TempDir: t.TempDir()})
			ctx := context.Background()
			layers := [][]byte{randomBytes(3<<20 + 17), randomBytes(1000)[1:]}
			ref := host + "/team/app:1"
			manifest, contents := testImage(t, layers...)
			for range 2 { // the second time everything is there
				if err := c.PushImage(ctx, ref, ociManifest, manifest, contents, tt.a); err != nil {
					t.Fatal(err)
				}
			}
			img, err := c.Resolve(ctx, ref, tt.a)
			if err != nil || img.Digest != sha(manifest) {
				t.Fatalf("%+v, %v", img, err)
			}
			if again, err := c.Revalidate(ctx, img, tt.a); err != nil || again != img {
				t.Errorf("Revalidate: %v, %v", again, err)
			}
			for i, l := range img.Layers {
				b := c.Blob(img, l, tt.a)
				p := make([]byte, 500)
				if _, err := b.ReadAt(ctx, p, 300); err != nil || !bytes.Equal(p, layers[i][300:800]) {
					t.Errorf("layer %d: ReadAt: %v", i, err)
				}
				if err := pullLayer(ctx, b, sha256.Sum256(layers[i])); err != nil {
					t.Errorf("layer %d: %v", i, err)
				}
			}
			if tt.a.Username != "" {
				wrong := tt.a
				wrong.Password = "wrong"
				if _, err := c.Resolve(ctx, ref, wrong); !errors.Is(err, ErrUnauthorized) {
					t.Errorf("with a wrong password: %v", err)
				}
				if err := c.Login(ctx, host, tt.a); err != nil {
					t.Errorf("Login: %v", err)
				}
			}
			if _, err := c.Resolve(ctx, host+"/team/none:1", tt.a); !errors.Is(err, ErrNotFound) {
				t.Errorf("unknown repository: %v", err)
			}
			interopArtifact(t, c, img, tt.a)
		})
	}
}

func interopArtifact(t *testing.T, c *Client, img *Image, a Access) {
	ctx := context.Background()
	const kind = "application/vnd.example.index.v1"
	if list, err := c.Referrers(ctx, img, "", a); err != nil || len(list) != 0 {
		t.Errorf("referrers of a new image: %v, %v", list, err)
	}
	repo, _, _ := strings.Cut(img.Reference, ":1")
	subject := Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Manifest))}
	for i := range 2 {
		_, err := c.PushArtifact(ctx, repo, subject, kind, []Content{NewContent("application/x", fmt.Appendf(nil, "blob %d", i), map[string]string{"n": fmt.Sprint(i)})}, map[string]string{"v": fmt.Sprint(i)}, a)
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.PushArtifact(ctx, repo, subject, "application/vnd.example.other", nil, nil, a); err != nil {
		t.Fatal(err)
	}
	list, err := c.Referrers(ctx, img, kind, a)
	if err != nil || len(list) != 2 {
		t.Fatalf("referrers: %+v, %v", list, err)
	}
	for _, d := range list {
		art, err := c.Artifact(ctx, repo, d, a)
		if err != nil || art.Type != kind || len(art.Blobs) != 1 || art.Blobs[0].Annotations["n"] != art.Annotations["v"] {
			t.Fatalf("artifact: %+v, %v", art, err)
		}
		data, err := c.ReadBlob(ctx, art.Reference, art.Blobs[0], a, 1<<20)
		if err != nil || string(data) != "blob "+art.Annotations["v"] {
			t.Errorf("blob: %q, %v", data, err)
		}
		if _, err := c.ReadBlob(ctx, art.Reference, art.Blobs[0], a, 2); !errors.Is(err, ErrUnsupported) {
			t.Errorf("a blob over the limit: %v", err)
		}
	}
}

// testImage is an image to push.
func testImage(t *testing.T, layers ...[]byte) (manifest []byte, contents []Content) {
	t.Helper()
	var ids []string
	m := artifactManifest{SchemaVersion: 2, MediaType: ociManifest}
	for _, l := range layers {
		ids = append(ids, sha([]byte("tar")))
		contents = append(contents, NewContent("application/vnd.oci.image.layer.v1.tar+gzip", l, nil))
		m.Layers = append(m.Layers, contents[len(contents)-1].descriptor())
	}
	config, err := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	if err != nil {
		t.Fatal(err)
	}
	contents = append(contents, NewContent("application/vnd.oci.image.config.v1+json", config, nil))
	m.Config = contents[len(contents)-1].descriptor()
	if manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return manifest, contents
}

// Requests for other hosts go through the proxy, with TLS end to end, and those for this machine do not.
func TestProxy(t *testing.T) {
	if os.Getenv("MSB_TEST_PROXY_CHILD") == "" {
		// net/http reads the proxy's variables once per process.
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		s, err := registry.Start(registry.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		addImage(t, s, "a/b:1", randomBytes(5000))
		var through int
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			through++
			req.RequestURI, req.URL.Host = "", s.Host() // whatever the name, it is this registry
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			for k, v := range resp.Header {
				w.Header()[k] = v
			}
			w.WriteHeader(resp.StatusCode)
			var b bytes.Buffer
			b.ReadFrom(resp.Body)
			w.Write(b.Bytes())
		}))
		defer proxy.Close()
		cmd := exec.Command(exe, "-test.run=^TestProxy$", "-test.v")
		cmd.Env = append(os.Environ(), "MSB_TEST_PROXY_CHILD="+s.Host(), "HTTP_PROXY="+proxy.URL, "NO_PROXY=direct.invalid")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if through != 3 { // manifest, config, one range
			t.Errorf("%d requests went through the proxy, want 3", through)
		}
		return
	}
	yes := true
	a := Access{Insecure: &yes, Platform: "linux/amd64"}
	c := newTestClient(t, Options{})
	img, err := c.Resolve(context.Background(), "registry.invalid/a/b:1", a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Blob(img, img.Layers[0], a).ReadAt(context.Background(), make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(context.Background(), os.Getenv("MSB_TEST_PROXY_CHILD")+"/a/b:1", a); err != nil {
		t.Errorf("a registry on this machine: %v", err)
	}
	if _, err := c.Resolve(context.Background(), "direct.invalid/a/b:1", a); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a host in NO_PROXY: %v", err)
	}
}
