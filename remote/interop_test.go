package remote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
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

// debianRegistry is Debian's docker-registry.
func debianRegistry(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is missing: apt-get install docker-registry")
	}
	return program
}

// distribution is the version of the CNCF's registry that is tested with.
const distribution = "v3.0.0"

// distributionRegistry is that registry, built once and kept in the user's cache directory. It has no storage but files, which
// makes it a tenth of what its own program is to build.
func distributionRegistry(t *testing.T) string {
	t.Helper()
	home := os.Getenv(realHome)
	cache := cmp.Or(os.Getenv("XDG_CACHE_HOME"), filepath.Join(home, ".cache"))
	program := filepath.Join(cache, "msb-fs", "tools", "distribution-"+distribution)
	if _, err := os.Stat(program); err == nil {
		return program
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module registry\n\ngo 1.24\n\nrequire github.com/distribution/distribution/v3 " + distribution + "\n",
		"main.go": `package main

import (
	"os"

	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

func main() {
	if registry.RootCmd.Execute() != nil {
		os.Exit(1)
	}
}
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-mod=mod", "-o", program+".new", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+home, "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("distribution cannot be built, which needs a module proxy: %v\n%s", err, out)
	}
	if err := os.Rename(program+".new", program); err != nil {
		t.Fatal(err)
	}
	return program
}

// startRegistry runs a registry of the CNCF's make with TLS and htpasswd (user u, password p) and returns its host.
func startRegistry(t *testing.T, program string, ca *testCA) string {
	t.Helper()
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
			t.Logf("the registry said: %s", output.Bytes())
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
	t.Fatalf("the registry does not listen: %s", output.Bytes())
	return ""
}

// The same things work with registries of four kinds: push an image, resolve and revalidate it, read it by range and
// in order, attach an artifact to it and find that again, move its tag.
func TestInterop(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	login := Access{Username: "u", Password: "p", CACerts: ca.pem, Platform: "linux/amd64"}
	for _, tt := range []struct {
		name  string
		start func(t *testing.T) string
		a     Access
	}{
		{"Debian docker-registry, TLS, htpasswd", func(t *testing.T) string { return startRegistry(t, debianRegistry(t), ca) }, login},
		{"distribution v3, TLS, htpasswd", func(t *testing.T) string { return startRegistry(t, distributionRegistry(t), ca) }, login},
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
			interopMoved(t, c, img, layers[0], tt.a)
		})
	}
}

// interopMoved moves img's tag to another image: the tag means that one from then on, and img is still there by its digest.
func interopMoved(t *testing.T, c *Client, img *Image, layer []byte, a Access) {
	ctx := context.Background()
	manifest, contents := testImage(t, randomBytes(2000)[2:])
	if err := c.PushImage(ctx, img.Reference, ociManifest, manifest, contents, a); err != nil {
		t.Fatal(err)
	}
	if moved, err := c.Revalidate(ctx, img, a); err != nil || moved.Digest != sha(manifest) {
		t.Errorf("after the tag has moved: %+v, %v", moved, err)
	}
	ref, err := AtDigest(img.Reference, img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	old, err := c.Resolve(ctx, ref, a)
	if err != nil || old.Digest != img.Digest {
		t.Fatalf("the old image by its digest: %+v, %v", old, err)
	}
	p := make([]byte, 100)
	if _, err := c.Blob(old, old.Layers[0], a).ReadAt(ctx, p, 10); err != nil || !bytes.Equal(p, layer[10:110]) {
		t.Errorf("its layer: %v", err)
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
