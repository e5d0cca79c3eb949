package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/registry"
)

// sociBlob is the layer that testdata/layer.ztoc is of: always the same bytes, whatever this Go's gzip does.
func sociBlob(t *testing.T) (blob, tarball []byte) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	mtime := time.Unix(1700000000, 0)
	for _, f := range []struct {
		name string
		size int
	}{{"d/large", 1400_000}, {"d/small", 5000}, {"d/last", 700_000}} {
		w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o640, Uid: 7, Gid: 8, Size: int64(f.size), ModTime: mtime, Format: tar.FormatUSTAR})
		io.WriteString(w, noise(f.size))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tarball = b.Bytes()
	blob = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255} // RFC 1952, with stored blocks (RFC 1951, 3.2.4)
	for rest := tarball; len(rest) > 0; {
		n := min(len(rest), 65535)
		last := byte(0)
		if n == len(rest) {
			last = 1
		}
		blob = append(blob, last, byte(n), byte(n>>8), ^byte(n), ^byte(n>>8))
		blob = append(blob, rest[:n]...)
		rest = rest[n:]
	}
	blob = binary.LittleEndian.AppendUint32(blob, crc32.ChecksumIEEE(tarball))
	return binary.LittleEndian.AppendUint32(blob, uint32(len(tarball))), tarball
}

// startDockerRegistry runs Debian's docker-registry, which knows no referrers API, and returns its host.
func startDockerRegistry(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is missing: apt-get install docker-registry")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := ln.Addr().String()
	ln.Close()
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", dir, host)
	path := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 1000 {
		if conn, err := net.Dial("tcp", host); err == nil {
			conn.Close()
			return host
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("docker-registry does not listen")
	return ""
}

// pusher puts an image with a SOCI index into a registry, by HTTP, as soci does.
type pusher struct {
	*testing.T
	base string // of the repository's API
}

func (p *pusher) send(method, url, mediaType string, body []byte) http.Header {
	p.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		p.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode >= 300 {
		p.Fatalf("%s %s: %s %s", method, url, resp.Status, text)
	}
	return resp.Header
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// object is a manifest's descriptor, subject, config or the like.
type object = map[string]any

func (p *pusher) blob(mediaType string, b []byte, annotations object) object {
	p.Helper()
	at := p.send("POST", p.base+"/blobs/uploads/", "", nil).Get("Location")
	if strings.HasPrefix(at, "/") {
		at = p.base[:strings.Index(p.base, "/v2/")] + at
	}
	sep := "?"
	if strings.Contains(at, "?") {
		sep = "&"
	}
	p.send("PUT", at+sep+"digest="+digestOf(b), "application/octet-stream", b)
	d := object{"mediaType": mediaType, "digest": digestOf(b), "size": len(b)}
	if annotations != nil {
		d["annotations"] = annotations
	}
	return d
}

// manifest puts m under tag, or its digest when tag is "".
func (p *pusher) manifest(tag string, m object) object {
	p.Helper()
	mediaType := "application/vnd.oci.image.manifest.v1+json"
	if m["manifests"] != nil {
		mediaType = "application/vnd.oci.image.index.v1+json"
	}
	m["schemaVersion"], m["mediaType"] = 2, mediaType
	b, err := json.Marshal(m)
	if err != nil {
		p.Fatal(err)
	}
	if tag == "" {
		tag = digestOf(b)
	}
	p.send("PUT", p.base+"/manifests/"+tag, mediaType, b)
	return object{"mediaType": mediaType, "digest": digestOf(b), "size": len(b)}
}

// image pushes an image whose only layer has a zTOC, in a SOCI index of that version; tagged: it is found by the tag that
// stands in for the referrers API.
func (p *pusher) image(version int, tagged bool, ztoc []byte) {
	p.Helper()
	blob, tarball := sociBlob(p.T)
	config, _ := json.Marshal(object{"architecture": "amd64", "os": "linux", "rootfs": object{"type": "layers", "diff_ids": []string{digestOf(tarball)}}})
	const gzipped = "application/vnd.oci.image.layer.v1.tar+gzip"
	image := object{
		"config": p.blob("application/vnd.oci.image.config.v1+json", config, nil),
		"layers": []object{p.blob(gzipped, blob, nil)},
	}
	index := object{
		"config": p.blob(fmt.Sprintf("application/vnd.amazon.soci.index.v%d+json", version), []byte("{}"), nil),
		"layers": []object{p.blob("application/octet-stream", ztoc, object{
			"com.amazon.soci.image-layer-mediaType": gzipped, "com.amazon.soci.image-layer-digest": digestOf(blob),
		})},
		"annotations": object{"com.amazon.soci.build-tool-identifier": "AWS SOCI CLI v0.2"},
	}
	if version == 2 {
		image["annotations"] = object{"com.amazon.soci.index-digest": p.manifest("", index)["digest"]}
		p.manifest("1", image)
		return
	}
	subject := p.manifest("1", image)
	index["subject"] = subject
	d := p.manifest("", index)
	if tagged {
		d["artifactType"] = "application/vnd.amazon.soci.index.v1+json"
		p.manifest(strings.Replace(subject["digest"].(string), ":", "-", 1), object{"manifests": []object{d}})
	}
}

// TestSOCI opens images with SOCI indexes as registries have them: the layer is lazy on its first ever open, its bytes are
// right, and only some of them are fetched. A zTOC that lies is found out when the layer is complete.
func TestSOCI(t *testing.T) {
	// Made by ztoc.NewBuilder of github.com/awslabs/soci-snapshotter v0.16.1, with spans of 512 KiB.
	ztoc, err := os.ReadFile("testdata/layer.ztoc")
	if err != nil {
		t.Fatal(err)
	}
	if path := os.Getenv("MSB_WRITE_SOCI_BLOB"); path != "" { // to make the zTOC of
		blob, _ := sociBlob(t)
		if err := os.WriteFile(path, blob, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lying := bytes.ReplaceAll(ztoc, []byte("d/small"), []byte("d/smell"))
	for _, tt := range []struct {
		name    string
		version int
		tagged  bool
		ztoc    []byte
		host    func(t *testing.T, h *host) string
	}{
		{"v1 by the referrers API", 1, false, ztoc, func(t *testing.T, h *host) string { return h.registry.Host() }},
		{"v2 by the manifest", 2, false, ztoc, func(t *testing.T, h *host) string { return h.registry.Host() }},
		{"v1 by the tag of docker-registry", 1, true, ztoc, func(t *testing.T, h *host) string { return startDockerRegistry(t) }},
		{"v2 of docker-registry", 2, false, ztoc, func(t *testing.T, h *host) string { return startDockerRegistry(t) }},
		{"v1 that lies", 1, false, lying, func(t *testing.T, h *host) string { return h.registry.Host() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, registry.Options{})
			host := tt.host(t, h)
			(&pusher{t, "http://" + host + "/v2/team/app"}).image(tt.version, tt.tagged, tt.ztoc)
			ref := host + "/team/app:1"
			name := "/d/small"
			lies := &tt.ztoc[0] == &lying[0]
			if lies {
				name = "/d/smell"
			}
			h.wantCat(ref, name, "", noise(5000))
			blob, _ := sociBlob(t)
			var img api.Image
			if err := h.client.Call(context.Background(), "POST", "/v1/inspect", api.ImageRequest{Image: ref}, &img); err != nil {
				t.Fatal(err)
			}
			if l := img.Layers[0]; l.Mode != "lazy-index" {
				t.Fatalf("the layer is served as %s: %s", l.Mode, l.Reason)
			}
			var stats api.Stats
			if err := h.client.Call(context.Background(), "GET", "/v1/stats", nil, &stats); err != nil {
				t.Fatal(err)
			}
			if stats.BytesFetched > int64(len(blob))*2/3 {
				t.Errorf("%d of %d bytes were fetched for one small file", stats.BytesFetched, len(blob))
			}
			if !lies {
				h.wantCat(ref, "/d/last", "", noise(700_000))
				h.wantCat(ref, "/d/large", "", noise(1400_000))
			}
			h.mustPull(ref) // which finds out what is false, and has the layer's own index then
			h.wantCat(ref, "/d/small", "", noise(5000))
			if lies {
				if got, err := h.cat(ref, name, ""); err == nil {
					t.Errorf("what the index made up is still there: %q", got)
				}
			}
		})
	}
}
