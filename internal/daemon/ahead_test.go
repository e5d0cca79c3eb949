package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// aheadImage puts an image of three layers, each of six files of 200 kB, into the registry.
func aheadImage(h *host) (ref string, img v1.Image) {
	h.Helper()
	var layers []*testimage.Layer
	for i := range 3 {
		var files []testimage.Entry
		for k := range 6 {
			files = append(files, testimage.File(fmt.Sprintf("l%d-%02d", i, k), noise(200_000+1000*i+k)))
		}
		layers = append(layers, layerOf(h, testimage.EStargz, files...))
	}
	img, err := testimage.Image(testimage.Config{}, layers...)
	if err != nil {
		h.Fatal(err)
	}
	if _, err := h.registry.AddImage("app:1", img); err != nil {
		h.Fatal(err)
	}
	return h.registry.Host() + "/app:1", img
}

// The ends of all layers and, with a profile, what the start needs of them are asked for while the config is still on its way; what was
// asked for ahead is fetched once.
func TestAhead(t *testing.T) {
	var profile api.Profiles
	for _, known := range []bool{false, true} {
		h := newHost(t, registry.Options{})
		ref, img := aheadImage(h)
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		path := "/v1/profiles/" + digest.String()
		if known {
			if err := h.client.Call(t.Context(), "PUT", path, profile, nil); err != nil {
				t.Fatal(err)
			}
		}
		config, err := img.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		h.registry.Inject(registry.Match{Ref: config.String()}, registry.Hold(release))
		dir := t.TempDir()
		t.Cleanup(func() { fs.Unmount(context.Background(), dir) })
		mounted := make(chan error, 1)
		go func() {
			req := api.MountRequest{ImageRequest: api.ImageRequest{Image: ref}, Dir: dir}
			mounted <- h.client.Stream(context.Background(), "POST", "/v1/mounts", req, func(api.Event) error { return nil })
		}()
		// The end of each layer, and the three files' chunks, which lie in two of the layers.
		want := 3
		if known {
			want = 6
		}
		h.ranges(want, func() { close(release) })
		if err := <-mounted; err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"l0-03", "l2-01", "l2-04"} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.HasPrefix(b, []byte(noise(100))) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !known { // the mount's users fall silent: it is known what they needed
			for deadline := time.Now().Add(60 * time.Second); len(profile.Data) == 0; time.Sleep(10 * time.Millisecond) {
				if err := h.client.Call(t.Context(), "GET", path, nil, &profile); err != nil || time.Now().After(deadline) {
					t.Fatalf("no profile is learned: %v", err)
				}
			}
			continue
		}
		var fetched int64
		for _, r := range h.registry.Requests() {
			fetched += r.Bytes
		}
		if fetched > 2<<20 { // three ends and three files, of 3.6 MB
			t.Errorf("%d bytes were fetched", fetched)
		}
	}
}

// ranges waits until the registry has been asked for n ranges of blobs, and calls then in any case.
func (h *host) ranges(n int, then func()) {
	h.Helper()
	defer then()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		have := 0
		for _, r := range h.registry.Requests() {
			if r.Range != "" {
				have++
			}
		}
		if have >= n {
			return
		}
		if time.Now().After(deadline) {
			h.Errorf("%d ranges are asked for without the config, not %d", have, n)
			return
		}
	}
}

// What a profile from elsewhere says of blobs may be nonsense: nothing comes of it but a start as without.
func TestAheadOfNonsense(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref, img := aheadImage(h)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	rec := profileRecord{Touches: []fs.Touch{{ID: 99 << 24}}, TOCs: []int64{-1, 1 << 60, 5, 7, 9}, Ranges: []fs.Range{
		{Layer: -1, From: 0, To: 10}, {Layer: 200, From: 0, To: 10}, {Layer: 0, From: 1 << 50, To: 1<<50 + 5}, {Layer: 1, From: 0, To: 100},
	}}
	if err := (profiles{h.daemon.images.pins.db}).put(digest.String(), rec); err != nil {
		t.Fatal(err)
	}
	dir := h.mount(ref, "")
	if b, err := os.ReadFile(filepath.Join(dir, "l1-04")); err != nil || len(b) != 201_004 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// A record's ranges are kept to what may wait in memory, and come back as they were.
func TestAdoptRanges(t *testing.T) {
	p := newProfiles(t)
	rec := profileRecord{Argv: []string{"a"}, Touches: []fs.Touch{{ID: 1}}, TOCs: []int64{5}, Ranges: []fs.Range{{Layer: 1, From: 3, To: 9}}}
	if err := p.put("sha256:aa", rec); err != nil {
		t.Fatal(err)
	}
	packed, err := p.export("sha256:aa")
	if err != nil {
		t.Fatal(err)
	}
	q := newProfiles(t)
	if err := q.adopt("sha256:aa", packed); err != nil {
		t.Fatal(err)
	}
	if got, err := q.record("sha256:aa", []string{"a"}); err != nil || len(got.Ranges) != 1 || got.Ranges[0] != rec.Ranges[0] || len(got.TOCs) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for name, ranges := range map[string]string{
		"too much": fmt.Sprintf(`{"layer":0,"from":0,"to":%d}`, maxAhead+1), "backwards": `{"layer":0,"from":9,"to":3}`, "negative": `{"layer":0,"from":-9,"to":3}`,
		"endless": `{"layer":0,"from":0,"to":9223372036854775807}`,
	} {
		var in published
		text := `{"version":1,"profiles":[{"argv":["a"],"touches":[{"id":1}],"ranges":[{"layer":0,"from":0,"to":1},` + ranges + strings.Repeat(`,{"layer":0,"from":0,"to":1}`, 3) + `]}]}`
		if err := json.Unmarshal([]byte(text), &in); err != nil {
			t.Fatal(err)
		}
		if got := sane(in.Profiles[0].Ranges); len(got) != 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
