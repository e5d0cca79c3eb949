package ociarchive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// entry is a member of a test archive: a file or, with to, a link.
type entry struct {
	name, data, to string
	typ            byte
}

func archiveOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.data)), Linkname: e.to}
		if e.typ != 0 {
			h.Typeflag = e.typ
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestOf(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

// blob is a file of an OCI layout.
func blob(data string) entry {
	return entry{name: "blobs/sha256/" + strings.TrimPrefix(digestOf(data), "sha256:"), data: data}
}

const config = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`

// ociLayout are the files of a layout whose index names the image as often as there are names.
func ociLayout(names ...string) []entry {
	layer := "not looked at"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
		"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},
		"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, digestOf(config), len(config), digestOf(layer), len(layer))
	var list []string
	for _, n := range names {
		list = append(list, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d,"annotations":{"org.opencontainers.image.ref.name":%q}}`,
			digestOf(manifest), len(manifest), n))
	}
	return []entry{{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`}, {name: "index.json", data: `{"schemaVersion":2,"manifests":[` + strings.Join(list, ",") + `]}`},
		blob(manifest), blob(config), blob(layer)}
}

// dockerArchive are the files of what docker save makes.
func dockerArchive(layers ...string) []entry {
	list, _ := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{"app:1"}, "Layers": layers}})
	return []entry{{name: "manifest.json", data: string(list)}, {name: "config.json", data: config}, {name: "a/layer.tar", data: "a layer"}}
}

// read opens an archive and returns the names of its images, and every blob of the first that is there.
func read(t testing.TB, b []byte) (names []string, blobs []string, err error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "archive")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := Open(t.Context(), path, dir)
	if err != nil {
		return nil, nil, err
	}
	defer a.Close()
	images, err := a.Images(t.Context(), "linux/amd64")
	if err != nil {
		return nil, nil, err
	}
	for _, img := range images {
		names = append(names, img.Names...)
	}
	var m struct{ Layers []struct{ Digest string } }
	if err := json.Unmarshal(images[0].Manifest, &m); err != nil {
		return nil, nil, err
	}
	for _, l := range m.Layers {
		r, _, err := a.Blob(l.Digest)
		if err != nil {
			return nil, nil, err
		}
		data, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if err = errors.Join(err, r.Close()); err != nil {
			return nil, nil, err
		}
		blobs = append(blobs, string(data))
	}
	return names, blobs, nil
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func TestOpen(t *testing.T) {
	inside := func(es []entry) []entry {
		for i := range es {
			es[i].name = "./image/" + es[i].name
		}
		return es
	}
	linked := append(dockerArchive("a/layer.tar", "b/layer.tar"), entry{name: "b/layer.tar", to: "../a/layer.tar", typ: tar.TypeSymlink})
	tests := []struct {
		name         string
		archive      []byte
		names, blobs string
	}{
		{"OCI", archiveOf(t, ociLayout("1", "two")...), "[1 two]", "[not looked at]"},
		{"OCI, in gzip", gzipped(archiveOf(t, ociLayout("1")...)), "[1]", "[not looked at]"},
		{"OCI, in a directory", archiveOf(t, inside(ociLayout("1"))...), "[1]", "[not looked at]"},
		{"docker", archiveOf(t, dockerArchive("a/layer.tar")...), "[app:1]", "[a layer]"},
		{"docker, a layer linked", archiveOf(t, linked...), "[app:1]", "[a layer a layer]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			names, blobs, err := read(t, tt.archive)
			if err != nil || fmt.Sprint(names) != tt.names || fmt.Sprint(blobs) != tt.blobs {
				t.Errorf("%v %v, %v; want %s %s", names, blobs, err, tt.names, tt.blobs)
			}
		})
	}
}

// TestOpenHostile has archives that are none, lead out of themselves or are larger than anything needs.
func TestOpenHostile(t *testing.T) {
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	large := ociLayout(many...)
	// The same manifest a hundred times, each of megabytes.
	padded := strings.Replace(large[2].data, `"schemaVersion":2`, `"schemaVersion":2,"x":"`+strings.Repeat("x", 4<<20)+`"`, 1)
	large[1].data = strings.ReplaceAll(large[1].data, digestOf(large[2].data), digestOf(padded))
	large[1].data = strings.ReplaceAll(large[1].data, fmt.Sprintf(`"size":%d`, len(large[2].data)), fmt.Sprintf(`"size":%d`, len(padded)))
	large[2] = blob(padded)
	other := ociLayout("1")
	other[2].data += " "
	tests := []struct {
		name    string
		archive []byte
		want    string
	}{
		{"nothing", nil, "neither an OCI image layout"},
		{"noise", bytes.Repeat([]byte("noise"), 1000), "damaged"},
		{"cut short", archiveOf(t, ociLayout("1")...)[:1200], "damaged"},
		{"an empty tar", archiveOf(t), "neither an OCI image layout"},
		{"a way out", archiveOf(t, entry{name: "../x", data: "x"}), "not inside the archive"},
		{"a link out", archiveOf(t, entry{name: "index.json", to: "../../etc/passwd", typ: tar.TypeSymlink}), "leads out of the archive"},
		{"links in a circle", archiveOf(t, entry{name: "index.json", to: "a", typ: tar.TypeSymlink}, entry{name: "a", to: "index.json", typ: tar.TypeSymlink}), "neither an OCI image layout"},
		{"no image", archiveOf(t, ociLayout()...), "names 0 images"},
		{"another blob", archiveOf(t, other...), "digest"},
		{"a missing layer", archiveOf(t, dockerArchive("nowhere")...), "damaged"},
		{"a layer outside", archiveOf(t, dockerArchive("../../etc/passwd")...), "not inside the archive"},
		{"too many layers", archiveOf(t, dockerArchive(make([]string, 200)...)...), "names 200 layers"},
		{"too large a document", archiveOf(t, entry{name: "index.json", data: strings.Repeat(" ", maxDocument+1)}), "at most"},
		{"large documents again and again", archiveOf(t, large...), "more than 134217728 bytes"},
		{"nothing but an array", archiveOf(t, entry{name: "index.json", data: `[]`}), "damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := read(t, tt.archive); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzOpen takes any bytes for an archive.
func FuzzOpen(f *testing.F) {
	for _, es := range [][]entry{ociLayout("1", "2"), dockerArchive("a/layer.tar"), nil} {
		f.Add(archiveOf(f, es...))
	}
	f.Add(gzipped(archiveOf(f, ociLayout("1")...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = read(t, b)
	})
}
