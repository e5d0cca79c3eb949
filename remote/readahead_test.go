package remote

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/internal/registry"
)

// Reads one after another are read ahead: few requests, and not more fetched than twice what was read.
func TestReadAhead(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(16 << 20)
	s, c, img := serve(t, registry.Options{}, Options{}, layer)
	s.ResetLog()
	b := c.Blob(img, img.Layers[0], Access{})
	const step, total = 32 << 10, 4 << 20
	p := make([]byte, step)
	for off := int64(0); off < total; off += step {
		if _, err := b.ReadAt(context.Background(), p, off); err != nil || !bytes.Equal(p, layer[off:off+step]) {
			t.Fatalf("read at %d: %v", off, err)
		}
	}
	if n := len(s.Requests()); n > 20 {
		t.Errorf("%d requests for %d reads in a row", n, total/step)
	}
	settle(t, b)
	st := b.Stats()
	if st.Bytes > 2*total+rangeSize {
		t.Errorf("fetched %d bytes for %d", st.Bytes, total)
	}
	if st.ClassBytes[priority.Predicted] == 0 {
		t.Error("nothing was predicted")
	}
	b.Close()
	if c.keptBytes != 0 || len(c.kept) != 0 {
		t.Errorf("%d bytes in %d flights are kept after Close", c.keptBytes, len(c.kept))
	}
}

// settle waits until nothing is under way.
func settle(t *testing.T, b *Blob) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		busy := 0
		for _, f := range b.flights {
			if !f.over {
				busy++
			}
		}
		b.mu.Unlock()
		if busy == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d flights are still under way", busy)
		}
	}
}

// Scattered reads are not read ahead.
func TestNoReadAhead(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(16 << 20)
	_, c, img := serve(t, registry.Options{}, Options{}, layer)
	b := c.Blob(img, img.Layers[0], Access{})
	r := rand.New(rand.NewPCG(1, 2))
	want := int64(0)
	for range 50 {
		if _, err := b.ReadAt(context.Background(), make([]byte, 1000), r.Int64N(15<<20)); err != nil {
			t.Fatal(err)
		}
		want += 1000
	}
	if got := b.Stats().Bytes; got > want*11/10 {
		t.Errorf("fetched %d bytes for %d", got, want)
	}
}

// What is read ahead never takes more than half of the buffers.
func TestReadAheadIsBounded(t *testing.T) {
	checkLeaks(t)
	layers := make([][]byte, 6)
	for i := range layers {
		layers[i] = append([]byte{byte(i)}, randomBytes(4<<20)...)
	}
	const buffers = 2 << 20
	_, c, img := serve(t, registry.Options{}, Options{BufferBytes: buffers}, layers...)
	for i, l := range img.Layers {
		b := c.Blob(img, l, Access{})
		for off := int64(0); off < 2<<20; off += 64 << 10 {
			p := make([]byte, 64<<10)
			if _, err := b.ReadAt(context.Background(), p, off); err != nil || !bytes.Equal(p, layers[i][off:off+64<<10]) {
				t.Fatalf("layer %d at %d: %v", i, off, err)
			}
			c.mu.Lock()
			if c.keptBytes > buffers/2+maxAhead {
				t.Errorf("%d bytes kept", c.keptBytes)
			}
			c.mu.Unlock()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keptBytes > buffers/2+maxAhead {
		t.Errorf("%d bytes kept", c.keptBytes)
	}
}

// Neighbouring demands that wait for a connection become one request.
func TestNeighboursAreJoined(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(4 << 20)
	s, c, img := serve(t, registry.Options{}, Options{ConnsPerHost: 1}, layer)
	release := make(chan struct{})
	s.Inject(registry.Match{Times: 1}, registry.Hold(release))
	s.ResetLog()
	b := c.Blob(img, img.Layers[0], Access{})
	done := make(chan error, 9)
	read := func(off int64) {
		p := make([]byte, 16<<10)
		_, err := b.ReadAt(priority.With(context.Background(), priority.Predicted), p, off)
		if err == nil && !bytes.Equal(p, layer[off:off+16<<10]) {
			t.Errorf("wrong bytes at %d", off)
		}
		done <- err
	}
	go read(3 << 20)
	for len(s.Requests()) == 0 {
		time.Sleep(time.Millisecond)
	}
	for i := range 8 { // neighbours, with gaps of 4 KiB, in no order
		go read(int64(i*3%8) * 20 << 10)
	}
	for {
		b.mu.Lock()
		waiting := 0
		for _, f := range b.flights {
			waiting += f.refs
		}
		b.mu.Unlock()
		if waiting == 9 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(release)
	for range 9 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := len(s.Requests()); n > 4 {
		t.Errorf("%d requests for one read and eight neighbours", n)
	}
}

// An on-demand range that is far later than the others is asked for again, and the first answer counts.
func TestHedge(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(4 << 20)
	s, c, img := serve(t, registry.Options{}, Options{StallTimeout: time.Minute}, layer)
	b := c.Blob(img, img.Layers[0], Access{})
	read := func(off int64) {
		t.Helper()
		p := make([]byte, 1000)
		if _, err := b.ReadAt(context.Background(), p, off); err != nil || !bytes.Equal(p, layer[off:off+1000]) {
			t.Fatalf("read at %d: %v", off, err)
		}
	}
	for i := range 40 {
		read(int64(i*37%40) * 100_000)
	}
	in := s.Inject(registry.Match{Times: 1}, registry.Hang())
	read(50_000) // without a second request this would take half the stall deadline
	if in.Hits() != 1 || b.Stats().Hedges != 1 {
		t.Errorf("%d requests hung, %d hedges", in.Hits(), b.Stats().Hedges)
	}
}
