package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/db"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

func newProfiles(t *testing.T) profiles {
	t.Helper()
	kv, err := db.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kv.Close() })
	return profiles{kv}
}

// Profiles travel: what one daemon has learned another knows, unless it has learned better itself.
func TestProfilesTravel(t *testing.T) {
	const image = "sha256:aa"
	here, there := newProfiles(t), newProfiles(t)
	if b, err := here.export(image); b != nil || err != nil {
		t.Fatalf("of nothing: %q, %v", b, err)
	}
	run := []fs.Touch{{ID: 1<<24 | 5, Offset: 4 << 20, At: time.Second, Unused: 1}, {ID: 2<<24 | 6}}
	mount := []fs.Touch{{ID: 1<<24 | 7}}
	for what, touches := range map[string][]fs.Touch{"python3 app.py": run, "": mount} {
		var argv []string
		if what != "" {
			argv = strings.Fields(what)
		}
		if err := here.put(image, profileRecord{Argv: argv, Touches: touches}); err != nil {
			t.Fatal(err)
		}
	}
	if err := here.put("sha256:aab", profileRecord{Argv: []string{"other"}, Touches: run}); err != nil {
		t.Fatal(err)
	}
	b, err := here.export(image)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := here.export(image); string(again) != string(b) {
		t.Error("exported twice, they differ")
	}
	own := []fs.Touch{{ID: 3<<24 | 1}}
	if err := there.put(image, profileRecord{Argv: nil, Touches: own}); err != nil {
		t.Fatal(err)
	}
	if err := there.adopt(image, b); err != nil {
		t.Fatal(err)
	}
	want := append([]fs.Touch(nil), run...)
	want[0].Unused = 0
	if got, err := there.get(image, []string{"python3", "app.py"}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := there.get(image, nil); err != nil || !reflect.DeepEqual(got, own) {
		t.Errorf("what was learned here became %+v, %v", got, err)
	}
	if got, err := there.get(image, []string{"other"}); err != nil || got != nil {
		t.Errorf("another image's profile came along: %+v, %v", got, err)
	}
}

// What others publish is refused, or harmless.
func TestAdoptRefuses(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	pack := func(s string) []byte { return enc.EncodeAll([]byte(s), nil) }
	for name, data := range map[string][]byte{
		"nothing": nil, "noise": []byte("noise"), "no JSON": pack("x"), "a version to come": pack(`{"version":2,"profiles":[]}`),
		"too many":  pack(`{"version":1,"profiles":[` + strings.Repeat(`{},`, maxProfiles) + `{}]}`),
		"a bomb":    pack(strings.Repeat(" ", maxProfileBytes+1)),
		"not a set": pack(`{"version":1,"profiles":{}}`),
	} {
		p := newProfiles(t)
		if err := p.adopt("sha256:aa", data); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	p := newProfiles(t)
	err = p.adopt("sha256:aa", pack(`{"version":1,"profiles":[{"argv":["a"],"touches":[{"id":1,"off":-5},{"id":1},{"id":1}]},{"argv":["`+strings.Repeat("x", maxArgv+1)+`"],"touches":[{"id":1}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := p.get("sha256:aa", []string{"a"}); len(got) != 1 {
		t.Errorf("%+v", got)
	}
	if got, _ := p.get("sha256:aa", []string{strings.Repeat("x", maxArgv+1)}); got != nil {
		t.Error("an endless command was kept")
	}
}

// TestPagesMakeAProfile learns of a mount what the kernel says has been used, and not what was read.
func TestPagesMakeAProfile(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.EStargz, noise(1<<20))
	dir := h.mount(ref, "")
	info, err := os.Stat(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "f")); err != nil {
		t.Fatal(err)
	}
	node := info.Sys().(*syscall.Stat_t).Ino
	req := api.PagesRequest{Dir: dir, Files: []api.FilePages{{Node: node, Pages: []uint64{0, 1}}, {Node: 1 << 60, Pages: []uint64{0}}}}
	if err := h.client.Call(t.Context(), "POST", "/v1/mounts/pages", req, nil); err != nil {
		t.Fatal(err)
	}
	h.unmount(dir)
	var mounts []api.Mount
	if err := h.client.Call(t.Context(), "POST", "/v1/mounts/pages", req, &mounts); !errors.Is(err, &api.Error{Code: api.CodeNotFound}) {
		t.Errorf("of what is not mounted: %v", err)
	}
	img, err := h.daemon.images.resolve(t.Context(), api.ImageRequest{Image: ref})
	if err != nil {
		t.Fatal(err)
	}
	got, err := profiles{h.daemon.images.pins.db}.get(img.Digest, nil)
	if err != nil || len(got) == 0 || got[0].ID != node || got[0].Offset != 0 {
		t.Fatalf("the profile is %+v, %v", got, err)
	}
	for i, c := range got { // what was read may have been learned before
		if used := c.Unused == 0; used != (i == 0) {
			t.Errorf("%d of the profile is %+v", i, c)
		}
	}
}
