package daemon

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func (h *host) load(req api.LoadRequest) (loaded []api.Image, err error) {
	h.Helper()
	err = h.client.Stream(context.Background(), "POST", "/v1/load", req, func(e api.Event) error {
		if e.Image != nil {
			loaded = append(loaded, *e.Image)
		}
		return nil
	})
	return loaded, err
}

// save writes ref to a file of that format and returns its path.
func (h *host) save(ref, format string) string {
	h.Helper()
	req := api.SaveRequest{ImageRequest: api.ImageRequest{Image: ref}, Format: format}
	path := filepath.Join(h.TempDir(), "saved.tar")
	if format == api.FormatDir {
		path = filepath.Join(h.TempDir(), "saved")
		req.Layout = path
		if err := h.client.Call(context.Background(), "POST", "/v1/save", req, nil); err != nil {
			h.Fatal(err)
		}
		return path
	}
	body, trailer, err := h.client.Raw(context.Background(), "POST", "/v1/save", req)
	if err != nil {
		h.Fatal(err)
	}
	defer body.Close()
	f, err := os.Create(path)
	if err != nil {
		h.Fatal(err)
	}
	_, err = f.ReadFrom(body)
	if err = errors.Join(err, trailer(), f.Close()); err != nil {
		h.Fatal(err)
	}
	return path
}

// What skopeo writes can be used without a registry, in every form, by everything that uses an image; and what is saved again is
// what skopeo and umoci read.
func TestLoadAndSave(t *testing.T) {
	h := newHost(t, registry.Options{})
	big := noise(3 << 20)
	for form, archives := range map[testimage.Form][]string{
		testimage.Gzip:    {"layout", "oci.tar", "docker.tar"},
		testimage.EStargz: {"layout"},
		testimage.Zstd:    {"layout"}, // skopeo makes no docker archive of it
	} {
		ref := h.add("app:"+string(form), layerOf(h, form, testimage.Dir("d", 0o755), testimage.File("f", "one"), testimage.File("big", big)),
			layerOf(h, form, testimage.File("f", "two")))
		dir := t.TempDir()
		for _, archive := range archives {
			to, want := "oci:"+dir+"/layout:tagged", "docker.io/library/layout:tagged"
			switch archive {
			case "oci.tar":
				to, want = "oci-archive:"+dir+"/oci.tar:localhost/oci:1", "localhost/oci:1"
			case "docker.tar":
				to, want = "docker-archive:"+dir+"/docker.tar:docker/app:1", "docker.io/docker/app:1"
			}
			t.Run(string(form)+"/"+archive, func(t *testing.T) {
				command(t, "skopeo", "copy", "--src-tls-verify=false", "docker://"+ref, to)
				h.loadsAndSaves(t, filepath.Join(dir, archive), want, big, form != testimage.Zstd)
			})
		}
	}
}

func (h *host) loadsAndSaves(t *testing.T, path, want, big string, umociReads bool) {
	h.registry.ResetLog()
	loaded, err := h.load(api.LoadRequest{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded) != 1 || loaded[0].Reference != want {
		t.Fatalf("loaded %+v, want %s", loaded, want)
	}
	if err := h.client.Call(t.Context(), "POST", "/v1/prune", api.PruneRequest{Chunks: true}, nil); err != nil { // only blobs are left
		t.Fatal(err)
	}
	if got, err := h.cat(want, "/f", ""); err != nil || got != "two" {
		t.Errorf("cat: %q, %v", got, err)
	}
	dir := t.TempDir()
	req := api.MountRequest{ImageRequest: api.ImageRequest{Image: want}, Dir: dir, Upper: filepath.Join(t.TempDir(), "upper")}
	if err := h.client.Stream(t.Context(), "POST", "/v1/mounts", req, func(api.Event) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "big")); err != nil || string(got) != big {
		t.Errorf("mounted: %d bytes, %v", len(got), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o644); err != nil {
		t.Error(err)
	}
	if err := h.client.Call(t.Context(), "DELETE", "/v1/mounts?dir="+dir, nil, nil); err != nil {
		fs.Unmount(context.Background(), dir)
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "committed")
	commit := api.CommitRequest{UpperRequest: api.UpperRequest{Upper: req.Upper}, Layout: layout, Tag: "x"}
	if err := h.client.Call(t.Context(), "POST", "/v1/commit", commit, nil); err != nil {
		t.Errorf("commit: %v", err)
	}
	unpack := func(layout, tag, file, content string) {
		t.Helper()
		bundle := filepath.Join(t.TempDir(), "b")
		command(t, "umoci", "unpack", "--image", layout+":"+tag, bundle)
		if got, err := os.ReadFile(filepath.Join(bundle, "rootfs", file)); err != nil || string(got) != content {
			t.Errorf("umoci's %s: %d bytes, %v", file, len(got), err)
		}
	}
	saved := h.save(want, api.FormatDir)
	if umociReads {
		unpack(layout, "x", "new", "new")
		unpack(saved, want[strings.LastIndexByte(want, ':')+1:], "f", "two")
	}
	for format, transport := range map[string]string{api.FormatOCI: "oci-archive:", api.FormatDocker: "docker-archive:"} {
		out := filepath.Join(t.TempDir(), "copied")
		command(t, "skopeo", "copy", transport+h.save(want, format), "oci:"+out+":y")
		if umociReads || format == api.FormatDocker {
			unpack(out, "y", "big", big)
		}
	}
	if n := len(h.registry.Requests()); n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
	h.daemon.tasks.drain(t)
	if err := h.client.Call(t.Context(), "DELETE", "/v1/images?ref="+want, nil, nil); err != nil {
		t.Error(err)
	}
	h.wantNothingLoaded(t)
}

func (h *host) wantNothingLoaded(t *testing.T) {
	t.Helper()
	if left, err := os.ReadDir(h.home.Cache("blobs")); err != nil || len(left) > 0 {
		t.Errorf("blobs left: %v, %v", left, err)
	}
}

// A blob that rots is noticed by verify, which then removes it.
func TestVerifyLoaded(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.Gzip, "content")
	path := h.save(ref, "")
	if _, err := h.load(api.LoadRequest{Path: path, Name: "loaded:1"}); err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(h.home.Cache("blobs"), "*"))
	if err != nil || len(blobs) != 1 {
		t.Fatalf("blobs: %v, %v", blobs, err)
	}
	if err := os.WriteFile(blobs[0], []byte("rotten"), 0o600); err != nil {
		t.Fatal(err)
	}
	var v api.Verified
	if err := h.client.Call(t.Context(), "POST", "/v1/verify", nil, &v); err != nil || v.Wrong != 1 {
		t.Errorf("verified: %+v, %v", v, err)
	}
	h.wantNothingLoaded(t)
}

// tarOf makes a tar of files by hand, from name and content in turn; a content that begins with "->" is a symbolic link's.
func tarOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}
		if link, ok := strings.CutPrefix(files[i+1], "->"); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, link, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			w.Write([]byte(files[i+1]))
		}
	}
	w.Close()
	return b.Bytes()
}

// An archive that is not what it says is refused, and leaves nothing behind.
func TestHostileArchives(t *testing.T) {
	h := newHost(t, registry.Options{})
	img, err := testimage.Image(testimage.Config{}, layerOf(h, testimage.Gzip, testimage.File("f", noise(100_000))))
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("app:1")
	if err != nil {
		t.Fatal(err)
	}
	var good bytes.Buffer
	if err := tarball.Write(tag, img, &good); err != nil {
		t.Fatal(err)
	}
	wrong := &v1.ConfigFile{RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}}}
	var config bytes.Buffer
	if err := json.NewEncoder(&config).Encode(wrong); err != nil {
		t.Fatal(err)
	}
	layer := string(tarOf(t, "f", "content"))
	digest := "sha256:" + strings.Repeat("a", 64)
	index := `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + digest + `","size":2}]}`
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	z.Write(tarOf(t, "manifest.json", strings.Repeat(" ", 20<<20)))
	z.Close()
	for what, b := range map[string][]byte{
		"nothing":                 {},
		"no archive":              []byte(strings.Repeat("not a tar ", 1000)),
		"no image":                tarOf(t, "readme", "hello"),
		"cut in a layer":          good.Bytes()[:good.Len()-60_000],
		"cut in a header":         good.Bytes()[:700],
		"cut in the compression":  bomb.Bytes()[:bomb.Len()/2],
		"a name outside":          tarOf(t, "../../etc/passwd", "x", "manifest.json", "[]"),
		"an absolute name":        tarOf(t, "/etc/passwd", "x", "manifest.json", "[]"),
		"a link outside":          tarOf(t, "c", "->../../../etc/passwd", "manifest.json", `[{"Config":"c","Layers":[]}]`),
		"an absolute link":        tarOf(t, "c", "->/etc/passwd", "manifest.json", `[{"Config":"c","Layers":[]}]`),
		"links in a circle":       tarOf(t, "c", "->d", "d", "->c", "manifest.json", `[{"Config":"c","Layers":[]}]`),
		"a config outside":        tarOf(t, "manifest.json", `[{"Config":"../../../../etc/passwd","Layers":[]}]`),
		"a layer outside":         tarOf(t, "c", "{}", "manifest.json", `[{"Config":"c","Layers":["../../../../etc/passwd"]}]`),
		"an absent layer":         tarOf(t, "c", "{}", "manifest.json", `[{"Config":"c","Layers":["l"]}]`),
		"a wrong diffID":          tarOf(t, "c", config.String(), "l", layer, "manifest.json", `[{"Config":"c","Layers":["l"],"RepoTags":["x:1"]}]`),
		"a bad name":              tarOf(t, "c", config.String(), "l", layer, "manifest.json", `[{"Config":"c","Layers":["l"],"RepoTags":["../../x y"]}]`),
		"fewer diffIDs":           tarOf(t, "c", "{}", "l", layer, "manifest.json", `[{"Config":"c","Layers":["l"]}]`),
		"a huge document":         bomb.Bytes(),
		"no images in the list":   tarOf(t, "manifest.json", "[]"),
		"a manifest of its own":   tarOf(t, "oci-layout", "{}", "index.json", index, "blobs/sha256/"+digest[7:], "{}"),
		"an absent manifest":      tarOf(t, "oci-layout", "{}", "index.json", index),
		"a digest that is a path": tarOf(t, "oci-layout", "{}", "index.json", strings.ReplaceAll(index, digest, "sha256:../../x")),
		"null":                    tarOf(t, "oci-layout", "{}", "index.json", "null"),
	} {
		path := filepath.Join(t.TempDir(), "x.tar")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		loaded, err := h.load(api.LoadRequest{Path: path})
		if err == nil {
			t.Errorf("%s: loaded %+v", what, loaded)
		} else if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "bug") {
			t.Errorf("%s: %v", what, err)
		} else {
			t.Logf("%s: %v", what, err)
		}
		h.wantNothingLoaded(t)
	}
	var images []api.Image
	if err := h.client.Call(t.Context(), "GET", "/v1/images", nil, &images); err != nil || len(images) > 0 {
		t.Errorf("in the store: %+v, %v", images, err)
	}
	// The good one, to see that it was not refused for something else; and one whose links lead out of its directory.
	path := filepath.Join(t.TempDir(), "good.tar")
	if err := os.WriteFile(path, good.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.load(api.LoadRequest{Path: path}); err != nil {
		t.Error(err)
	}
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "oci-layout"), []byte("{}"), 0o600), os.Symlink("/etc/passwd", filepath.Join(dir, "index.json"))); err != nil {
		t.Fatal(err)
	}
	if _, err := h.load(api.LoadRequest{Path: dir}); err == nil {
		t.Error("a link out of the layout was followed")
	} else {
		t.Log(err)
	}
}
