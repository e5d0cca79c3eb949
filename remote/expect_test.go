package remote

import (
	"bytes"
	"testing"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/internal/registry"
)

// What is expected comes once, before anybody reads it, and is kept until it is read; there is no room for everything.
func TestExpect(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(8 << 20)
	s, c, img := serve(t, registry.Options{}, Options{BufferBytes: 6 << 20}, layer)
	b := c.Blob(img, img.Layers[0], Access{})
	if _, err := b.ReadAt(t.Context(), make([]byte, 1), 7<<20); err != nil {
		t.Fatal(err)
	}
	if b.Latency() <= 0 {
		t.Error("nothing is known of a registry that has answered")
	}
	s.ResetLog()
	const off, n = 100_000, 1<<20 + 1<<19
	for range 2 {
		if !b.Expect(off, n) {
			t.Fatal("there is no room for 1.5 MiB")
		}
	}
	for _, r := range [][2]int64{{-1, 5}, {1 << 62, 5}, {5, -1}, {int64(len(layer)), 5}, {0, 0}} {
		if !b.Expect(r[0], r[1]) {
			t.Errorf("[%d,+%d) takes room", r[0], r[1])
		}
	}
	if b.Expect(3<<20, 4<<20) {
		t.Error("there is room for more than half of the buffers")
	}
	settle(t, b)
	if got := c.keptBytes; got > 3<<20 {
		t.Errorf("%d bytes are kept", got)
	}
	requests := len(s.Requests())
	p := make([]byte, n)
	if _, err := b.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p, layer[off:off+n]) {
		t.Fatalf("what was expected: %v", err)
	}
	if got := len(s.Requests()); got != requests {
		t.Errorf("%d requests for what is there", got-requests)
	}
	if st := b.Stats(); st.ClassBytes[priority.OnDemand] != 1 {
		t.Errorf("%d bytes were fetched on demand", st.ClassBytes[priority.OnDemand])
	}
	if b.Bandwidth() <= 0 {
		t.Error("a megabyte has come, and nothing is known of the bandwidth")
	}
	b.DropAhead()
	if c.keptBytes != 0 || len(b.flights) != 0 {
		t.Errorf("%d bytes in %d flights are kept though nobody wants them", c.keptBytes, len(b.flights))
	}
}

// The manifest is told of before the config is fetched, and what is told is the caller's own.
func TestResolveEarly(t *testing.T) {
	checkLeaks(t)
	s, c, want := serve(t, registry.Options{}, Options{}, randomBytes(1000))
	s.ResetLog()
	called := 0
	img, err := c.ResolveEarly(t.Context(), want.Reference, Access{}, func(early *Image) {
		called++
		if n := len(s.Requests()); n != 1 {
			t.Errorf("%d requests until then", n)
		}
		if early.Digest != want.Digest || len(early.Layers) != 1 || early.Layers[0].Digest != want.Layers[0].Digest || early.Config != nil {
			t.Errorf("%+v", early)
		}
		early.Layers[0].Size = -5
	})
	if err != nil || called != 1 || img.Layers[0].Size != want.Layers[0].Size {
		t.Errorf("called %d times, %+v, %v", called, img, err)
	}
}
