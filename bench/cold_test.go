package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// testWriter gives what is said to the test's log.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// programs builds this project's programs.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("go", "build", "-o", dir, "../cmd/msb-fs").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// TestColdStartsAreMeasured is a small part of `make bench-quick`: it fails when a measurement is broken, and not when this machine is slow.
func TestColdStartsAreMeasured(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it makes and starts images")
	}
	if os.Getuid() != 0 {
		t.Skip("not root: mounting and containers need it")
	}
	for _, program := range []string{"mmdebstrap", "skopeo", "umoci", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is not installed")
		}
	}
	if err := adopt(); err != nil {
		t.Fatal(err)
	}
	bin := programs(t)
	s, err := newStore(bin, testWriter{t})
	if err != nil {
		t.Fatal(err)
	}
	systems, err := chooseSystems("mount,umoci", bin, testWriter{t})
	if err != nil || len(systems) != 2 {
		t.Fatal(systems, err)
	}
	res, err := openResults(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// What a start reads takes a loop device to find out.
	if err := appendLine(filepath.Join(res.dir, imagesFile), Facts{Image: "python", Layers: 3, Bytes: 78e6, Native: 0.03, Touched: 2.8e6}); err != nil {
		t.Fatal(err)
	}
	p := &plan{
		choices: []choice{{[]string{"python"}, []string{"estargz", "gzip"}, []string{"1g"}, []string{"mount", "umoci"}}},
		runs:    1, systems: systems, images: workloads(), store: s, results: res, said: testWriter{t},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	if failed, err := p.run(ctx); err != nil || failed > 0 {
		t.Fatalf("%d starts failed: %v", failed, err)
	}
	set, err := readResults(res.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(set.records) != 4 {
		t.Fatalf("%d starts were measured", len(set.records))
	}
	for _, r := range set.records {
		checkRecord(t, r)
	}
	if _, err := set.writeReport(); err != nil {
		t.Error(err)
	}
	// Once more: everything is there already.
	if _, err := p.run(ctx); err != nil {
		t.Error(err)
	}
	if again, err := readResults(res.dir); err != nil || len(again.records) != 4 {
		t.Errorf("after a second run there are %d starts: %v", len(again.records), err)
	}
}

// checkRecord fails when a start's numbers cannot be.
func checkRecord(t *testing.T, r Record) {
	t.Helper()
	if r.Mounted <= 0 || r.Output < r.Mounted || r.Ready < r.Output || r.Complete <= 0 {
		t.Errorf("%s, %s: mounted after %.3f s, output %.3f, ready %.3f, complete %.3f", r.System, r.Form, r.Mounted, r.Output, r.Ready, r.Complete)
	}
	if r.CPU <= 0 || r.CPUAll < r.CPU || r.RSSTotal <= 0 || len(r.RSS) == 0 || r.Requests < 4 || r.Idle < 0 || r.Idle > r.Ready {
		t.Errorf("%s, %s: %.3f s of CPU, %.3f in all, %d B, %v, %d requests, %.3f s idle", r.System, r.Form, r.CPU, r.CPUAll, r.RSSTotal, r.RSS, r.Requests, r.Idle)
	}
	whole := r.System == "umoci" || r.Form == "gzip"
	if whole && r.Bytes < r.ImageBytes {
		t.Errorf("%s, %s: %d of %d bytes have come", r.System, r.Form, r.Bytes, r.ImageBytes)
	}
	if !whole && (r.Bytes == 0 || r.Bytes > r.ImageBytes) {
		t.Errorf("%s, %s: %d of %d bytes have come, this was not lazy", r.System, r.Form, r.Bytes, r.ImageBytes)
	}
}

// TestAnotherImage copies an image of a registry, converts it, and serves it.
func TestAnotherImage(t *testing.T) {
	var layers []*testimage.Layer
	for _, entries := range [][]testimage.Entry{{testimage.Dir("etc", 0o755)}, {testimage.File("etc/motd", "hello\n")}} {
		l, err := testimage.NewLayer(testimage.Zstd, entries...)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := testimage.Image(testimage.Config{Entrypoint: []string{"/bin/app"}, Cmd: []string{"serve"}, Env: []string{"A=b"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := registry.Start(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	if _, err := srv.AddImage("team/App:1", img); err == nil {
		t.Error("upper case was taken")
	}
	if _, err := srv.AddImage("team/app:1", img); err != nil {
		t.Fatal(err)
	}
	s := store{dir: t.TempDir(), progress: testWriter{t}}
	src := &source{ref: srv.Host() + "/team/app:1"}
	w := src.workload("")
	for _, f := range []form{{key: "as-is", layout: asIs}, {key: "estargz", layout: testimage.EStargz}} {
		got, err := s.image(t.Context(), w, f)
		if err != nil {
			t.Fatal(err)
		}
		if got.layers != 2 || got.size == 0 || len(got.argv()) != 2 || got.config.Env[0] != "A=b" || got.name != "app-1" {
			t.Errorf("%s: %d layers, %d B, %q, %q, called %s", f.key, got.layers, got.size, got.argv(), got.config.Env, got.name)
		}
		again, ref, err := got.serve(nil)
		if err != nil {
			t.Fatal(err)
		}
		if ref != again.Host()+"/bench/app-1:latest" {
			t.Error(ref)
		}
		again.Close()
	}
	src.argv = []string{"/bin/other"}
	if got, err := s.image(t.Context(), w, form{layout: asIs}); err != nil || len(got.argv()) != 1 || got.argv()[0] != "/bin/other" {
		t.Errorf("%v, %v", got, err)
	}
}
