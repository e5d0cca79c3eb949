package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/internal/registry"
)

// An operation is something a user waits for.
type operation string

const (
	resolving  operation = "resolve"
	onDemand   operation = "on-demand read"
	background operation = "background read"
	fullPull   operation = "full pull"
)

var operations = []operation{resolving, onDemand, background, fullPull}

// verifiedRead reads a range as the layers above do: checked against its digest, and once more if it is wrong.
func verifiedRead(ctx context.Context, b *Blob, off, n int64, want [32]byte) error {
	p := make([]byte, n)
	for range 2 {
		if _, err := b.ReadAt(ctx, p, off); err != nil {
			return err
		}
		if sha256.Sum256(p) == want {
			return nil
		}
		b.Distrust(off, n)
	}
	return ErrDigest
}

// operate does op and fails t when it delivers a wrong byte.
func operate(ctx context.Context, t *testing.T, op operation, c *Client, ref string, img *Image, layers [][]byte) error {
	switch op {
	case resolving:
		got, err := c.Resolve(ctx, ref, amd64)
		if err == nil && got.Digest != img.Digest {
			t.Errorf("resolved to %s, want %s", got.Digest, img.Digest)
		}
		return err
	case onDemand:
		return verifiedRead(ctx, c.Blob(img, img.Layers[0], Access{}), 70_000, 32<<10, sha256.Sum256(layers[0][70_000:70_000+32<<10]))
	case background:
		ctx = priority.With(ctx, priority.Background)
		return verifiedRead(ctx, c.Blob(img, img.Layers[0], Access{}), 1000, 2<<20, sha256.Sum256(layers[0][1000:1000+2<<20]))
	}
	ctx = priority.With(ctx, priority.Background)
	for i, l := range img.Layers {
		if err := pullLayer(ctx, c.Blob(img, l, Access{}), sha256.Sum256(layers[i])); err != nil {
			return err
		}
	}
	return nil
}

// pullLayer streams a layer and checks its digest at the end; if it is wrong, once more.
func pullLayer(ctx context.Context, b *Blob, want [32]byte) error {
	defer b.Close()
	for range 2 {
		s, err := b.Open(ctx, 0)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, s)
		s.Close()
		if err != nil {
			return err
		}
		if bytes.Equal(h.Sum(nil), want[:]) {
			return nil
		}
		b.Distrust(0, b.Size())
	}
	return ErrDigest
}

// What every operation comes to under every fault. A fault that ends is survived; one that does not ends in an error
// that says what happened, before the stall deadline has passed twice.
func TestFaults(t *testing.T) {
	checkLeaks(t)
	const stall = 3 * time.Second
	all := func(err error) map[operation]error {
		return map[operation]error{resolving: err, onDemand: err, background: err, fullPull: err}
	}
	reads := func(err error) map[operation]error {
		return map[operation]error{resolving: nil, onDemand: err, background: err, fullPull: err}
	}
	blobs := registry.Match{When: func(r *http.Request) bool { return r.Header.Get("Range") != "" }}
	times := func(m registry.Match, n int) registry.Match { m.Times = n; return m }
	every := registry.Match{}
	for _, tt := range []struct {
		name   string
		match  registry.Match
		faults []registry.Fault
		want   map[operation]error
		store  bool // blobs are on a second host
	}{
		{"latency", every, []registry.Fault{registry.Latency(50 * time.Millisecond)}, all(nil), false},
		{"low bandwidth", every, []registry.Fault{registry.Throttle(20 << 20)}, all(nil), false},
		{"reset at byte 1000, three times", times(every, 3), []registry.Fault{registry.ResetAt(1000)}, all(nil), false},
		{"reset before the answer, three times", times(every, 3), []registry.Fault{registry.Refuse()}, all(nil), false},
		{"reset before every answer", every, []registry.Fault{registry.Refuse()}, all(ErrUnreachable), false},
		{"cut body, three times", times(every, 3), []registry.Fault{registry.CutAt(5000)}, all(nil), false},
		{"cut body, always", blobs, []registry.Fault{registry.CutAt(0)}, reads(ErrUnreachable), false},
		{"body of another length, once", times(blobs, 1), []registry.Fault{registry.Short(5000)}, all(nil), false},
		{"body of another length, always", blobs, []registry.Fault{registry.Short(5000)}, reads(ErrUnreachable), false},
		{"stall within the body, once", times(blobs, 1), []registry.Fault{registry.StallAt(5000)}, all(nil), false},
		{"wrong byte, once", times(blobs, 1), []registry.Fault{registry.FlipByte(80_000)}, all(nil), false},
		{"wrong byte, always", blobs, []registry.Fault{registry.FlipByte(80_000)}, reads(ErrDigest), false},
		{"wrong byte in every document", every, []registry.Fault{registry.FlipByte(20)}, map[operation]error{resolving: ErrDigest, fullPull: ErrDigest}, false},
		{"wrong Content-Range, once", times(blobs, 1), []registry.Fault{registry.ShiftRange(1)}, all(nil), false},
		{"wrong Content-Range, always", blobs, []registry.Fault{registry.ShiftRange(1)}, reads(ErrUnreachable), false},
		{"no Content-Range", blobs, []registry.Fault{registry.Header("Content-Range", "")}, reads(ErrUnreachable), false},
		{"Content-Encoding", blobs, []registry.Fault{registry.Header("Content-Encoding", "gzip")}, reads(ErrUnreachable), false},
		{"200 for a Range", every, []registry.Fault{registry.IgnoreRange()}, all(nil), false},
		{"200 for a Range, cut twice", times(every, 3), []registry.Fault{registry.IgnoreRange(), registry.CutAt(300_000)}, all(nil), false},
		{"200 for a Range, wrong byte once", times(blobs, 1), []registry.Fault{registry.IgnoreRange(), registry.FlipByte(80_000)}, all(nil), false},
		{"404", every, []registry.Fault{registry.Status(404)}, all(ErrNotFound), false},
		{"401", every, []registry.Fault{registry.Status(401)}, all(ErrUnauthorized), false},
		{"403", every, []registry.Fault{registry.Status(403)}, all(ErrUnauthorized), false},
		{"416", blobs, []registry.Fault{registry.Status(416)}, reads(ErrUnreachable), false},
		{"429 with Retry-After", times(every, 1), []registry.Fault{registry.Status(429, "Retry-After", "1")}, all(nil), false},
		{"429, always", every, []registry.Fault{registry.Status(429, "Retry-After", "1")}, all(ErrUnreachable), false},
		{"5xx burst", times(every, 3), []registry.Fault{registry.Status(503)}, all(nil), false},
		{"5xx, always", every, []registry.Fault{registry.Status(500)}, all(ErrUnreachable), false},
		{"hang, once", times(every, 1), []registry.Fault{registry.Hang()}, all(nil), false},
		{"hang, always", every, []registry.Fault{registry.Hang()}, all(ErrUnreachable), false},
		{"HEAD refused", registry.Match{Method: http.MethodHead}, []registry.Fault{registry.Status(403)}, all(nil), true},
		{"object store: 403, twice", registry.Match{Op: registry.Object, Times: 2}, []registry.Fault{registry.Status(403)}, all(nil), true},
		{"object store: 400, twice", registry.Match{Op: registry.Object, Times: 2}, []registry.Fault{registry.Status(400)}, all(nil), true},
		{"object store: 5xx burst", registry.Match{Op: registry.Object, Times: 3}, []registry.Fault{registry.Status(503)}, all(nil), true},
		{"object store: 403, always", registry.Match{Op: registry.Object}, []registry.Fault{registry.Status(403)}, all(ErrUnreachable), true},
		{"object store: hang, once", registry.Match{Op: registry.Object, Times: 1}, []registry.Fault{registry.Hang()}, all(nil), true},
	} {
		for _, op := range operations {
			want, ok := tt.want[op]
			if !ok {
				continue
			}
			t.Run(tt.name+"/"+string(op), func(t *testing.T) {
				t.Parallel()
				layers := [][]byte{randomBytes(2<<20 + 100_000), randomBytes(300_000)[1:]}
				s, c, img := serve(t, registry.Options{ObjectStore: tt.store}, Options{StallTimeout: stall, TempDir: t.TempDir()}, layers...)
				if op == resolving { // a client that knows nothing of the host yet
					c = newTestClient(t, Options{StallTimeout: stall})
				}
				in := s.Inject(tt.match, tt.faults...)
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				// By digest: a tag that is answered with other bytes is another image, not a mistake anybody can see.
				err := operate(ctx, t, op, c, s.Host()+"/a/b@"+img.Digest, img, layers)
				if !errors.Is(err, want) || ctx.Err() != nil {
					t.Errorf("got  %v\nwant %v", err, want)
				}
				if in.Hits() == 0 && !(tt.match.Method == http.MethodHead) && want != nil {
					t.Error("the fault hit nothing")
				}
				if st := s.Stats(); st.Leaked != 0 {
					t.Errorf("credentials were sent to the object store %d times", st.Leaked)
				}
				if want == nil {
					return
				}
				if msg := err.Error(); bytes.ContainsRune([]byte(msg), '\n') {
					t.Errorf("more than one line: %q", msg)
				}
				in.Remove() // and once the registry is well again, so are reads
				if err := operate(ctx, t, op, c, s.Host()+"/a/b@"+img.Digest, img, layers); err != nil {
					t.Errorf("after the fault was gone: %v", err)
				}
			})
		}
	}
}

// Reads go on where they were when a registry comes back within the stall deadline, and fail when it does not.
func TestRegistryDown(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(2 << 20)
	s, c, img := serve(t, registry.Options{}, Options{StallTimeout: 20 * time.Second}, layer)
	s.Down()
	done := make(chan error, 1)
	p := make([]byte, 1<<20)
	b := c.Blob(img, img.Layers[0], Access{})
	go func() {
		_, err := b.ReadAt(context.Background(), p, 5)
		done <- err
	}()
	for c.Stats().Retries < 3 {
		time.Sleep(5 * time.Millisecond)
	}
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !bytes.Equal(p, layer[5:5+1<<20]) {
		t.Errorf("after the registry came back: %v", err)
	}
}

func TestNoSuchHost(t *testing.T) {
	checkLeaks(t)
	var lookups atomic.Int32 // connections are made ahead of need, several at once
	c := newTestClient(t, Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		lookups.Add(1)
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: "registry.invalid", IsNotFound: true}}
	}})
	c.sleep = func(ctx context.Context, d time.Duration) error { return ctx.Err() }
	_, err := c.Resolve(context.Background(), "registry.invalid/a/b:1", amd64)
	if !errors.Is(err, ErrUnreachable) || lookups.Load() == 0 {
		t.Errorf("got %v", err)
	}
	if want := "no such host"; err != nil && !bytes.Contains([]byte(err.Error()), []byte(want)) {
		t.Errorf("%q does not say %q", err, want)
	}
}

// Half a day of sleep between two reads: tokens, signed URLs and connections are all gone, and nobody notices.
func TestHalfADayLater(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(1 << 20)
	k := newClock()
	k.t = time.Now()
	s, _, img := serveWith(t, registry.Options{Now: k.now, ObjectStore: true, URLTTL: 20 * time.Minute,
		Auth: registry.Auth{Username: "u", Password: "p", Bearer: true}}, layer)
	c := newTestClient(t, Options{})
	c.now = k.now
	b := c.Blob(img, img.Layers[0], Access{Username: "u", Password: "p"})
	for i := range 4 {
		p := make([]byte, 1000)
		if _, err := b.ReadAt(context.Background(), p, int64(i)*1000); err != nil || !bytes.Equal(p, layer[i*1000:i*1000+1000]) {
			t.Errorf("read %d: %v", i, err)
		}
		time.Sleep(200 * time.Millisecond) // else the deadline of what is being read ahead ends in the jump
		k.add(12 * time.Hour)
	}
	if st := s.Stats(); st.Leaked != 0 {
		t.Errorf("credentials were sent to the object store %d times", st.Leaked)
	}
}

// serveWith is serve for a registry that wants the credentials u and p.
func serveWith(t *testing.T, o registry.Options, layers ...[]byte) (*registry.Server, *Client, *Image) {
	t.Helper()
	s, err := registry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	addImage(t, s, "a/b:1", layers...)
	c := newTestClient(t, Options{})
	img, err := c.Resolve(context.Background(), s.Host()+"/a/b:1", Access{Username: "u", Password: "p", Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	return s, c, img
}

// Mirrors are tried in order, remembered, and left when they have not got something or deliver what is wrong.
func TestMirrors(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(1 << 20)
	start := func(ref string) *registry.Server {
		s, err := registry.Start(registry.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if ref != "" {
			addImage(t, s, ref, layer)
		}
		return s
	}
	empty, broken, good, origin := start(""), start("hub/a/b:1"), start("a/b:1"), start("a/b:1")
	broken.Inject(registry.Match{Op: registry.Blob}, registry.FlipByte(100))
	c := newTestClient(t, Options{Config: &Config{Hosts: map[string]*Host{origin.Host(): {Mirrors: []string{
		"http://" + empty.Host(), "http://" + broken.Host() + "/hub", good.Host()}}}}})
	ctx := context.Background()
	img, err := c.Resolve(ctx, origin.Host()+"/a/b:1", amd64)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifiedRead(ctx, c.Blob(img, img.Layers[0], Access{}), 0, 1000, sha256.Sum256(layer[:1000])); err != nil {
		t.Error(err)
	}
	if n := len(origin.Requests()); n != 0 {
		t.Errorf("the registry itself saw %d requests", n)
	}
	if n := len(empty.Requests()); n != 1 {
		t.Errorf("the empty mirror saw %d requests, want 1", n)
	}
	good.Down()
	before := len(broken.Requests())
	if err := verifiedRead(ctx, c.Blob(img, img.Layers[0], Access{}), 5000, 1000, sha256.Sum256(layer[5000:6000])); err != nil {
		t.Errorf("with two mirrors gone: %v", err)
	}
	if n := len(broken.Requests()) - before; n > 1 {
		t.Errorf("the mirror that delivered wrong bytes was asked %d times more", n)
	}
	empty.Down()
	broken.Down()
	if err := verifiedRead(ctx, c.Blob(img, img.Layers[0], Access{}), 9000, 1000, sha256.Sum256(layer[9000:10000])); err != nil {
		t.Errorf("with all mirrors gone: %v", err)
	}
}
