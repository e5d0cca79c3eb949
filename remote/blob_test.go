package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/internal/registry"
)

func TestReadAt(t *testing.T) {
	checkLeaks(t)
	const size = 5<<20 + 123
	_, _, b, data := testBlob(t, size, Options{})
	ctx := context.Background()
	for _, tt := range []struct {
		name   string
		off, n int64
		want   int64
		err    error
	}{
		{"start", 0, 10, 10, nil},
		{"middle", 1<<20 - 5, 10, 10, nil},
		{"several ranges", 100, 4 << 20, 4 << 20, nil},
		{"all", 0, size, size, nil},
		{"up to the end", size - 7, 7, 7, nil},
		{"over the end", size - 7, 8, 7, io.EOF},
		{"at the end", size, 1, 0, io.EOF},
		{"after the end", size + 5, 1, 0, io.EOF},
		{"nothing", 3, 0, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := make([]byte, tt.n)
			n, err := b.ReadAt(ctx, p, tt.off)
			if int64(n) != tt.want || err != tt.err {
				t.Fatalf("got %d, %v; want %d, %v", n, err, tt.want, tt.err)
			}
			if n > 0 && !bytes.Equal(p[:n], data[tt.off:tt.off+int64(n)]) {
				t.Fatal("wrong bytes")
			}
		})
	}
	if _, err := b.ReadAt(ctx, make([]byte, 1), -1); err == nil {
		t.Error("a negative offset is no error")
	}
	if got := b.Stats(); got.Bytes == 0 || got.Requests == 0 {
		t.Errorf("stats %+v", got)
	}
	if len(b.flights) != 0 {
		t.Errorf("%d flights are left", len(b.flights))
	}
}

func TestReadAtConcurrently(t *testing.T) {
	checkLeaks(t)
	_, _, b, data := testBlob(t, 3<<20, Options{ConnsPerHost: 4})
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for range 30 {
				off := r.Int64N(int64(len(data)) - 1)
				p := make([]byte, 1+r.Int64N(min(200<<10, int64(len(data))-off)))
				ctx := priority.With(context.Background(), priority.Class(r.IntN(3)))
				if _, err := b.ReadAt(ctx, p, off); err != nil || !bytes.Equal(p, data[off:off+int64(len(p))]) {
					t.Errorf("read [%d,+%d): %v", off, len(p), err)
				}
			}
		})
	}
	wg.Wait()
}

func TestOpen(t *testing.T) {
	checkLeaks(t)
	r, _, b, data := testBlob(t, 9<<20+5, Options{})
	for _, off := range []int64{0, 1, 3 << 20, int64(len(data)) - 1, int64(len(data))} {
		s, err := b.Open(context.Background(), off)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s)
		s.Close()
		if err != nil || !bytes.Equal(got, data[off:]) {
			t.Fatalf("from %d: %d bytes, %v", off, len(got), err)
		}
	}
	if _, err := b.Open(context.Background(), int64(len(data))+1); err == nil {
		t.Error("opened behind the end")
	}
	for _, line := range r.seen() {
		if !strings.Contains(line, "bytes=") {
			t.Errorf("request without range: %s", line)
		}
	}
}

func TestOpenCancel(t *testing.T) {
	checkLeaks(t)
	_, _, b, _ := testBlob(t, 9<<20, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	s, err := b.Open(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, s); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s.Close()
	if len(b.flights) != 0 {
		t.Errorf("%d flights are left", len(b.flights))
	}
}

// A registry that answers 200 to a Range request is asked once.
func TestNoRangeSupport(t *testing.T) {
	checkLeaks(t)
	r, _, b, data := testBlob(t, 4<<20, Options{TempDir: t.TempDir()})
	r.hook = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, b.Digest()) {
			return false
		}
		w.Write(data)
		return true
	}
	ctx := context.Background()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := make([]byte, 1000)
			off := int64(i) * 500_000
			if _, err := b.ReadAt(ctx, p, off); err != nil || !bytes.Equal(p, data[off:off+1000]) {
				t.Errorf("read at %d: %v", off, err)
			}
		})
	}
	wg.Wait()
	s, err := b.Open(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	s.Close()
	before := len(r.seen())
	if _, err := b.ReadAt(ctx, make([]byte, 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	if n := len(r.seen()); n != 0 || before > 8 {
		t.Errorf("%d requests at first, %d more once the blob was there", before, n)
	}
	b.Close()
}

func TestNoRangeSupportWrongDigest(t *testing.T) {
	checkLeaks(t)
	r, _, b, data := testBlob(t, 1<<20, Options{TempDir: t.TempDir()})
	wrong := bytes.Clone(data)
	wrong[len(wrong)-1]++
	r.hook = func(w http.ResponseWriter, req *http.Request) bool {
		w.Write(wrong)
		return true
	}
	s, err := b.Open(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// The last byte comes before the whole is checked; the error must come all the same, if not here then in the next read.
	_, err = io.Copy(io.Discard, s)
	for deadline := time.Now().Add(5 * time.Second); err == nil && time.Now().Before(deadline); {
		_, err = b.ReadAt(context.Background(), make([]byte, 10), 0)
	}
	if !errors.Is(err, ErrDigest) {
		t.Errorf("got %v", err)
	}
}

func TestRedirectIsLearned(t *testing.T) {
	checkLeaks(t)
	r, _, b, data := testBlob(t, 1<<20, Options{})
	var bearer atomic.Int32
	var expired atomic.Bool
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") != "" {
			bearer.Add(1)
		}
		if expired.Load() && req.URL.Query().Get("sig") == "1" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
	}))
	defer storage.Close()
	sig := "1"
	r.hook = func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		http.Redirect(w, req, storage.URL+"/blob?sig="+sig, http.StatusTemporaryRedirect)
		return true
	}
	b.access = Access{Username: "u", Password: "p"}
	read := func(off int64) {
		t.Helper()
		p := make([]byte, 100)
		if _, err := b.ReadAt(context.Background(), p, off); err != nil || !bytes.Equal(p, data[off:off+100]) {
			t.Fatalf("read at %d: %v", off, err)
		}
	}
	read(0)
	if n := len(r.seen()); n != 2 {
		t.Errorf("the registry saw %d requests, want 2: the challenge and the redirect", n)
	}
	read(600_000)
	read(300_000)
	if got := r.seen(); len(got) != 0 {
		t.Errorf("the registry was asked again: %q", got)
	}
	expired.Store(true)
	sig = "2"
	read(900_000)
	if n := len(r.seen()); n != 1 {
		t.Errorf("the registry saw %d requests after the URL expired, want 1", n)
	}
	if bearer.Load() != 0 {
		t.Error("the storage host was sent credentials")
	}
}

func TestCancelledReaderStopsItsFetch(t *testing.T) {
	checkLeaks(t)
	r, _, b, _ := testBlob(t, 1<<20, Options{})
	stopped := make(chan struct{})
	started := make(chan struct{})
	r.hook = func(w http.ResponseWriter, req *http.Request) bool {
		close(started)
		<-req.Context().Done()
		close(stopped)
		return true
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-started; cancel() }()
	if _, err := b.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	<-stopped // or the test hangs
}

// Two readers of the same range share one request, and one of them going away does not stop it.
func TestReadersShareAFlight(t *testing.T) {
	checkLeaks(t)
	r, _, b, data := testBlob(t, 1<<20, Options{})
	var count atomic.Int32
	started, goOn := make(chan struct{}), make(chan struct{})
	r.hook = func(w http.ResponseWriter, req *http.Request) bool {
		if count.Add(1) == 1 {
			close(started)
		}
		<-goOn
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() {
		_, err := b.ReadAt(ctx, make([]byte, 1000), 0)
		first <- err
	}()
	<-started
	second := make(chan error, 1)
	p := make([]byte, 500)
	go func() {
		_, err := b.ReadAt(context.Background(), p, 200)
		second <- err
	}()
	for b.Stats().Joined == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	close(goOn)
	if err := <-second; err != nil || !bytes.Equal(p, data[200:700]) {
		t.Errorf("second: %v", err)
	}
	if n := count.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// Many readers of a blob behind a registry that redirects ask the registry once.
func TestRedirectIsAskedForOnce(t *testing.T) {
	checkLeaks(t)
	layer := randomBytes(4 << 20)
	s, c, img := serve(t, registry.Options{ObjectStore: true}, Options{StallTimeout: time.Minute}, layer, layer[1:])
	read := func(b *Blob, off int64) {
		p := make([]byte, 1000)
		if _, err := b.ReadAt(context.Background(), p, off); err != nil || !bytes.Equal(p, layer[off:off+1000]) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	read(c.Blob(img, img.Layers[0], Access{}), 0)
	s.ResetLog()
	s.Inject(registry.Match{Op: registry.Blob}, registry.Latency(50*time.Millisecond))
	b := c.Blob(img, img.Layers[0], Access{})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { read(b, int64(i)*200_000) })
	}
	wg.Wait()
	if n := len(s.Requests(registry.Blob)); n != 1 {
		t.Errorf("the registry saw %d requests, want 1", n)
	}
	if n := len(s.Requests(registry.Object)); n == 0 || n > 16 { // neighbours that wait together are asked for together
		t.Errorf("the object store saw %d requests, want 1 to 16", n)
	}
}
