package testimage

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// TestStackIsBuiltOnce uses the images kept between runs: the second time nothing is built.
func TestStackIsBuiltOnce(t *testing.T) {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("mmdebstrap is not installed")
	}
	dir, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	out, err := Python().Layout(t.Context(), dir, Gzip, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	again, err := Python().Layout(t.Context(), dir, Gzip, &said)
	if err != nil || again != out || said.Len() > 0 {
		t.Errorf("second time: %s, %v, said %q", again, err, said.String())
	}
	idx, err := layout.ImageIndexFromPath(out)
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 3 {
		t.Fatalf("%d layers: %v", len(layers), err)
	}
	for i, want := range []string{"./etc/debian_version", "./usr/bin/python3", "app/main.py"} {
		rc, err := layers[i].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		got := names(t, rc)
		rc.Close()
		if got[want] == nil && got[strings.TrimPrefix(want, "./")] == nil {
			t.Errorf("layer %d has no %s", i, want)
		}
		for n := range got {
			inside := func(dir string) bool { return strings.HasPrefix(n, dir) && n != dir }
			if inside("var/lib/apt/lists/") || inside("proc/") || inside("dev/") {
				t.Errorf("layer %d has %s", i, n)
			}
		}
	}
	if parts, _ := filepath.Glob(filepath.Join(dir, ".layout-*")); len(parts) > 0 {
		t.Errorf("left behind: %v", parts)
	}
	if _, err := os.Stat(filepath.Join(out, "oci-layout")); err != nil {
		t.Error(err)
	}
}
