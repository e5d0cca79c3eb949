package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

var amd64 = Access{Platform: "linux/amd64"}

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"python":                          "docker.io/library/python:latest",
		"python:3.12":                     "docker.io/library/python:3.12",
		"docker.io/python":                "docker.io/library/python:latest",
		"index.docker.io/library/python":  "docker.io/library/python:latest",
		"me/app":                          "docker.io/me/app:latest",
		"localhost:5000/app":              "localhost:5000/app:latest",
		"ghcr.io/a/b/c:v1":                "ghcr.io/a/b/c:v1",
		"a/b:1@" + sha(nil):               "docker.io/a/b@" + sha(nil),
		"[::1]:5000/app:1":                "[::1]:5000/app:1",
		"":                                "",
		"UPPER":                           "",
		"a/b:":                            "",
		"a b":                             "",
		"x@sha256:12":                     "",
		"../../etc/passwd":                "",
		"../x":                            "",
		".a/x":                            "",
		"a..b/x":                          "",
		"https://docker.io/python":        "",
		strings.Repeat("a", 2000):         "",
		"registry.example.com/a/b:1\x00c": "",
	} {
		got, err := Normalize(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("Normalize(%q) = %q, %v; want %q", in, got, err, want)
		}
		if err != nil && (!errors.Is(err, ErrInvalidReference) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("Normalize(%q): %q", in, err)
		}
	}
	for in, want := range map[string]string{"python:3": "docker.io/library/python", "a.io/b/c@" + sha(nil): "a.io/b/c", "A b": "A b"} {
		if got := Repository(in); got != want {
			t.Errorf("Repository(%q) = %q, want %q", in, got, want)
		}
	}
	if got, err := AtDigest("python:3.12", sha(nil)); err != nil || got != "docker.io/library/python@"+sha(nil) {
		t.Errorf("AtDigest = %q, %v", got, err)
	}
}

func TestResolve(t *testing.T) {
	checkLeaks(t)
	r := newTestRegistry(t)
	amd := r.image("a/b", "amd", "linux/amd64", []byte("layer one"), []byte("layer two"))
	arm := r.image("a/b", "arm", "linux/arm64", []byte("layer arm"))
	entry := func(manifest []byte, os, arch string) map[string]any {
		return map[string]any{"mediaType": ociManifest, "digest": sha(manifest), "size": len(manifest),
			"platform": map[string]any{"os": os, "architecture": arch}}
	}
	attestation := entry(arm, "unknown", "unknown")
	attestation["annotations"] = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	index := r.manifest("a/b", "multi", map[string]any{"schemaVersion": 2, "mediaType": ociIndex,
		"manifests": []any{attestation, entry(arm, "linux", "arm64"), entry(amd, "linux", "amd64")}}, ociIndex)
	r.manifest("a/b", "nested", map[string]any{"schemaVersion": 2, "mediaType": ociIndex,
		"manifests": []any{map[string]any{"mediaType": ociIndex, "digest": sha(index), "size": len(index)}}}, ociIndex)
	var docker map[string]any
	json.Unmarshal(amd, &docker)
	docker["mediaType"] = dockerManifest
	r.manifest("a/b", "docker", docker, dockerManifest)

	c := newTestClient(t, Options{})
	for _, tt := range []struct {
		ref, platform string
		digest        string // "" = not compared
		requests      int
		layers        int
		err           error
		message       string
	}{
		{"a/b:amd", "linux/amd64", sha(amd), 2, 2, nil, ""},
		{"a/b:amd", "linux/x86_64", sha(amd), 2, 2, nil, ""},
		{"a/b@" + sha(amd), "linux/amd64", sha(amd), 2, 2, nil, ""},
		{"a/b:multi", "linux/amd64", sha(amd), 3, 2, nil, ""},
		{"a/b:multi", "linux/arm64", sha(arm), 3, 1, nil, ""},
		{"a/b:multi", "linux/arm64/v8", sha(arm), 3, 1, nil, ""},
		{"a/b:nested", "linux/arm64", sha(arm), 4, 1, nil, ""},
		{"a/b:docker", "linux/amd64", "", 2, 2, nil, ""},
		{"a/b:multi", "linux/s390x", "", 1, 0, ErrUnsupported, "linux/amd64, linux/arm64"},
		{"a/b:amd", "linux/arm64", "", 2, 0, ErrUnsupported, "linux/amd64"},
		{"a/b:nope", "linux/amd64", "", 1, 0, ErrNotFound, "MANIFEST_UNKNOWN"},
		{"a/b:amd", "amd64", "", 0, 0, ErrUnsupported, "os/arch"},
		{"a/b@" + sha([]byte("other")), "", "", 1, 0, ErrNotFound, "check the name"},
	} {
		t.Run(tt.ref+" "+tt.platform, func(t *testing.T) {
			r.seen()
			img, err := c.Resolve(context.Background(), r.host()+"/"+tt.ref, Access{Platform: tt.platform})
			if n := len(r.seen()); n != tt.requests {
				t.Errorf("%d requests, want %d", n, tt.requests)
			}
			if tt.err != nil {
				if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.message) || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.digest != "" && img.Digest != tt.digest || len(img.Layers) != tt.layers || img.Layers[0].DiffID == "" || img.Platform == "" {
				t.Errorf("got %+v", img)
			}
			if strings.Contains(tt.ref, "multi") && img.IndexDigest != sha(index) {
				t.Errorf("index digest %s", img.IndexDigest)
			}
			again, err := ParseImage(img.Reference, img.Manifest, img.Config)
			if err != nil || again.Digest != img.Digest || again.Layers[0].DiffID != img.Layers[0].DiffID || again.Platform != img.Platform {
				t.Errorf("ParseImage: %+v, %v", again, err)
			}
		})
	}
}

// An image of nothing is an image.
func TestNoLayers(t *testing.T) {
	r := newTestRegistry(t)
	for _, tt := range []struct{ name, layers, ids string }{{"lists", "[]", "[]"}, {"null", "null", "null"}} {
		config := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":` + tt.ids + `}}`)
		r.put("/v2/a/b/blobs/"+sha(config), "", config)
		manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"layers":%s,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d}}`,
			ociManifest, tt.layers, sha(config), len(config))
		r.put("/v2/a/b/manifests/"+tt.name, ociManifest, manifest)
		img, err := newTestClient(t, Options{}).Resolve(context.Background(), r.host()+"/a/b:"+tt.name, amd64)
		if err != nil || len(img.Layers) != 0 || img.Digest != sha(manifest) {
			t.Errorf("%s: %+v, %v", tt.name, img, err)
		}
	}
}

// What a registry says must be what its digests name, and what this program can run.
func TestResolveRefuses(t *testing.T) {
	checkLeaks(t)
	r := newTestRegistry(t)
	good := r.image("a/b", "good", "linux/amd64", []byte("layer"))
	var doc map[string]any
	json.Unmarshal(good, &doc)
	change := func(key string, value any) map[string]any {
		m := map[string]any{}
		for k, v := range doc {
			m[k] = v
		}
		m[key] = value
		return m
	}
	layer := doc["layers"].([]any)[0].(map[string]any)
	foreign := map[string]any{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": layer["digest"], "size": 5, "urls": []string{"https://example.com"}}
	many := make([]any, 128)
	for i := range many {
		many[i] = layer
	}
	r.manifest("a/b", "foreign", change("layers", []any{foreign}), ociManifest)
	r.manifest("a/b", "many", change("layers", many), ociManifest)
	r.manifest("a/b", "none", change("layers", []any{}), ociManifest) // with one diff_id
	r.manifest("a/b", "artifact", change("config", map[string]any{"mediaType": emptyConfig, "digest": sha([]byte("{}")), "size": 2}), ociManifest)
	r.manifest("a/b", "negative", change("layers", []any{map[string]any{"digest": layer["digest"], "size": -1}}), ociManifest)
	r.manifest("a/b", "both", change("manifests", []any{}), ociManifest)
	r.manifest("a/b", "liar", change("mediaType", ociIndex), ociManifest)
	r.manifest("a/b", "schema1", map[string]any{"schemaVersion": 1, "fsLayers": []any{}}, "")
	r.manifest("a/b", "diffids", change("layers", []any{layer, layer}), ociManifest)
	r.put("/v2/a/b/manifests/html", "", []byte("<html>captive portal</html>"))
	r.put("/v2/a/b/manifests/"+sha([]byte("x")), "", []byte("y"))
	loop := change("mediaType", ociIndex)
	delete(loop, "config")
	delete(loop, "layers")
	deep := r.manifest("a/b", "", map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{"digest": sha(good), "mediaType": ociManifest}}}, ociIndex)
	for range 4 {
		deep = r.manifest("a/b", "deep", map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{"digest": sha(deep), "mediaType": ociIndex}}}, ociIndex)
	}
	c := newTestClient(t, Options{})
	for ref, want := range map[string]struct {
		kind    error
		message string
	}{
		"a/b:foreign":             {ErrUnsupported, "foreign"},
		"a/b:many":                {ErrUnsupported, "128 layers"},
		"a/b:none":                {ErrUnsupported, "0 layers but 1 diff_ids"},
		"a/b:artifact":            {ErrUnsupported, "an artifact"},
		"a/b:negative":            {ErrUnsupported, "size -1"},
		"a/b:both":                {ErrUnsupported, "both"},
		"a/b:liar":                {ErrUnsupported, "calls itself"},
		"a/b:schema1":             {ErrUnsupported, "schema 1"},
		"a/b:diffids":             {ErrUnsupported, "diff_ids"},
		"a/b:html":                {ErrUnsupported, "manifest"},
		"a/b:deep":                {ErrUnsupported, "deep"},
		"a/b@" + sha([]byte("x")): {ErrDigest, "want sha256:"},
	} {
		t.Run(ref, func(t *testing.T) {
			_, err := c.Resolve(context.Background(), r.host()+"/"+ref, amd64)
			if !errors.Is(err, want.kind) || !strings.Contains(err.Error(), want.message) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("config", func(t *testing.T) {
		config := doc["config"].(map[string]any)["digest"].(string)
		r.put("/v2/a/b/blobs/"+config, "", []byte("{}"))
		_, err := c.Resolve(context.Background(), r.host()+"/a/b:good", amd64)
		if !errors.Is(err, ErrDigest) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("ParseImage", func(t *testing.T) {
		if _, err := ParseImage("x", good, []byte("{}")); !errors.Is(err, ErrDigest) {
			t.Errorf("got %v", err)
		}
	})
}

func TestRevalidate(t *testing.T) {
	r := newTestRegistry(t)
	first := r.image("a/b", "1", "linux/amd64", []byte("layer one"))
	c := newTestClient(t, Options{})
	img, err := c.Resolve(context.Background(), r.host()+"/a/b:1", amd64)
	if err != nil {
		t.Fatal(err)
	}
	for _, conditional := range []bool{true, false} {
		r.hook = nil
		if !conditional { // a registry that ignores If-None-Match
			r.hook = func(w http.ResponseWriter, req *http.Request) bool { req.Header.Del("If-None-Match"); return false }
		}
		r.seen()
		same, err := c.Revalidate(context.Background(), img, amd64)
		if err != nil || same != img {
			t.Errorf("conditional %t: got %v, %v", conditional, same, err)
		}
		if n := len(r.seen()); n != 1 {
			t.Errorf("conditional %t: %d requests", conditional, n)
		}
	}
	second := r.image("a/b", "1", "linux/amd64", []byte("layer two"))
	moved, err := c.Revalidate(context.Background(), img, amd64)
	if err != nil || moved.Digest != sha(second) || img.Digest != sha(first) {
		t.Errorf("got %v, %v", moved, err)
	}
}

func TestResolveRetries(t *testing.T) {
	checkLeaks(t)
	r := newTestRegistry(t)
	r.image("a/b", "1", "linux/amd64", []byte("layer"))
	c := newTestClient(t, Options{})
	var slept []time.Duration
	c.sleep = func(ctx context.Context, d time.Duration) error { slept = append(slept, d); return ctx.Err() }
	fails := 3
	r.hook = func(w http.ResponseWriter, req *http.Request) bool {
		if fails--; fails < 0 {
			return false
		}
		w.Header().Set("Retry-After", fmt.Sprint(fails*10))
		w.WriteHeader([]int{503, 429, 500}[fails])
		return true
	}
	if _, err := c.Resolve(context.Background(), r.host()+"/a/b:1", amd64); err != nil {
		t.Fatal(err)
	}
	if len(slept) != 3 || slept[0] != 20*time.Second || slept[1] != 10*time.Second || slept[2] > time.Second {
		t.Errorf("slept %v", slept)
	}
}

func TestResolveUnreachable(t *testing.T) {
	checkLeaks(t)
	r := newTestRegistry(t)
	host := r.host()
	r.Close()
	c := newTestClient(t, Options{})
	start := time.Now()
	_, err := c.Resolve(context.Background(), host+"/a/b:1", amd64)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %v, long after the stall deadline", d)
	}
}

func TestResolveHang(t *testing.T) {
	checkLeaks(t)
	r := newTestRegistry(t)
	r.hook = func(w http.ResponseWriter, req *http.Request) bool { <-req.Context().Done(); return true }
	c := newTestClient(t, Options{StallTimeout: 200 * time.Millisecond})
	_, err := c.Resolve(context.Background(), r.host()+"/a/b:1", amd64)
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err = c.Resolve(ctx, r.host()+"/a/b:1", amd64); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestPlatformFit(t *testing.T) {
	for _, tt := range []struct {
		want, better, worse string
	}{
		{"linux/arm64", "linux/arm64/v8", "linux/amd64"},
		{"linux/arm/v7", "linux/arm/v7", "linux/arm/v6"},
		{"linux/arm/v7", "linux/arm/v6", "linux/arm/v8"},
		{"linux/amd64", "linux/amd64", "linux/amd64/v3"},
		{"linux/amd64", "linux/amd64/v2", "linux/amd64/v3"},
		{"linux/amd64/v3", "linux/amd64/v3", "linux/amd64"},
	} {
		parse := func(s string) platform {
			p, err := parsePlatform(s)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		w := parse(tt.want)
		if a, b := w.fit(parse(tt.better)), w.fit(parse(tt.worse)); a <= b {
			t.Errorf("%s: %s fits %d, %s fits %d", tt.want, tt.better, a, tt.worse, b)
		}
	}
}

func TestImageIsPlainData(t *testing.T) {
	r := newTestRegistry(t)
	r.image("a/b", "1", "linux/amd64", []byte("layer"))
	c := newTestClient(t, Options{})
	img, err := c.Resolve(context.Background(), r.host()+"/a/b:1", amd64)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(img)
	if err != nil {
		t.Fatal(err)
	}
	var back Image
	if err := json.Unmarshal(data, &back); err != nil || back.Digest != img.Digest || !bytes.Equal(back.Config, img.Config) {
		t.Errorf("got %+v, %v", back, err)
	}
}
