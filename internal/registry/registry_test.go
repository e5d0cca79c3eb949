package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		os.Exit(code)
	}))
}

// start is a server that ends with the test.
func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// image is a random image with its first layer's digest and bytes.
func image(t *testing.T) (v1.Image, string, []byte) {
	t.Helper()
	img, err := random.Image(20000, 2)
	if err != nil {
		t.Fatal(err)
	}
	ls, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := ls[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := ls[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return img, d.String(), b
}

// client is an HTTP client that leaves no connection behind.
func client(t *testing.T) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// get asks for a range ("" is everything) and returns the answer with its body as far as it came.
func get(t *testing.T, c *http.Client, url, span string) (*http.Response, []byte, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if span != "" {
		r.Header.Set("Range", span)
	}
	resp, err := c.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func TestPushAndPull(t *testing.T) {
	s := start(t, Options{})
	img, digest, blob := image(t)
	tag, err := name.NewTag(s.Host() + "/some/app:1")
	if err != nil {
		t.Fatal(err)
	}
	tr := remote.WithTransport(client(t).Transport)
	if err := remote.Write(tag, img, tr); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(tag, tr)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := img.Digest()
	if d, _ := got.Digest(); d != want {
		t.Errorf("pulled %s, pushed %s", d, want)
	}
	for _, c := range []struct {
		span   string
		status int
		want   []byte
	}{
		{"", 200, blob},
		{"bytes=100-199", 206, blob[100:200]},
		{"bytes=100-", 206, blob[100:]},
		{"bytes=-7", 206, blob[len(blob)-7:]},
		{fmt.Sprintf("bytes=%d-", len(blob)), 416, nil},
	} {
		resp, b, err := get(t, client(t), s.URL()+"/v2/some/app/blobs/"+digest, c.span)
		if err != nil || resp.StatusCode != c.status || c.want != nil && !bytes.Equal(b, c.want) {
			t.Errorf("range %q: %v %d, %d bytes", c.span, err, resp.StatusCode, len(b))
		}
	}
	if n := s.Stats().ByOp[Blob]; n < 5 {
		t.Errorf("%d blob requests counted", n)
	}
	if r := s.Requests(Blob); r[len(r)-2].Range != "bytes=-7" || r[len(r)-2].Bytes != 7 || r[len(r)-2].Status != 206 {
		t.Errorf("logged %+v", r[len(r)-2])
	}
}

func TestAdd(t *testing.T) {
	s := start(t, Options{})
	img, digest, blob := image(t)
	dir := t.TempDir()
	if _, err := layout.Write(dir, mutate.AppendManifests(emptyIndex(t), mutate.IndexAddendum{Add: img})); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddLayout("from/layout", dir); err != nil {
		t.Fatal(err)
	}
	idx, err := random.Index(1000, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddIndex("an/index:v", idx); err != nil {
		t.Fatal(err)
	}
	c := client(t)
	for _, ref := range []string{"from/layout:latest", "an/index:v"} {
		r, err := name.ParseReference(s.Host() + "/" + ref)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Get(r, remote.WithTransport(c.Transport)); err != nil {
			t.Error(err)
		}
	}
	if _, b, err := get(t, c, s.URL()+"/v2/from/layout/blobs/"+digest, ""); err != nil || !bytes.Equal(b, blob) {
		t.Errorf("blob from layout: %v, %d bytes", err, len(b))
	}
	if err := s.RemoveBlob(digest); err != nil {
		t.Fatal(err)
	}
	if resp, _, err := get(t, c, s.URL()+"/v2/from/layout/blobs/"+digest, ""); err != nil || resp.StatusCode != 404 {
		t.Errorf("removed blob: %v, %v", err, resp)
	}
}

func emptyIndex(t *testing.T) v1.ImageIndex {
	t.Helper()
	idx, err := random.Index(1, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	return idx
}

func TestDownAndUp(t *testing.T) {
	s := start(t, Options{Link: NewLink(0, time.Millisecond)})
	c := client(t)
	host := s.Host()
	s.Down()
	if _, _, err := get(t, c, s.URL()+"/v2/", ""); err == nil {
		t.Error("answered while down")
	}
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := get(t, c, s.URL()+"/v2/", ""); err != nil || s.Host() != host {
		t.Errorf("after Up at %s, before at %s: %v", s.Host(), host, err)
	}
}

func TestCloseEndsHangingRequests(t *testing.T) {
	s, err := Start(Options{Link: NewLink(1<<20, time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	in := s.Inject(Match{Op: Ping}, Hang())
	c := client(t)
	done := make(chan error)
	go func() {
		resp, err := c.Get(s.URL() + "/v2/")
		if err == nil {
			resp.Body.Close()
		}
		done <- err
	}()
	for in.Hits() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("a hanging request was answered")
	}
}

func TestBasicAuth(t *testing.T) {
	s := start(t, Options{Auth: Auth{Username: "u", Password: "p"}})
	img, _, _ := image(t)
	if _, err := s.AddImage("a", img); err != nil {
		t.Fatal(err)
	}
	ref, _ := name.ParseReference(s.Host() + "/a")
	tr := remote.WithTransport(client(t).Transport)
	if _, err := remote.Get(ref, tr); err == nil {
		t.Error("anonymous was let in")
	}
	if _, err := remote.Get(ref, tr, remote.WithAuth(&authn.Basic{Username: "u", Password: "p"})); err != nil {
		t.Error(err)
	}
}

func TestTokensExpire(t *testing.T) {
	var mu sync.Mutex
	now := time.Unix(1e9, 0)
	s := start(t, Options{
		Auth: Auth{Username: "u", Password: "p", IdentityToken: "id", Bearer: true, TokenTTL: time.Minute},
		Now: func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return now
		},
	})
	img, _, _ := image(t)
	if _, err := s.AddImage("a", img); err != nil {
		t.Fatal(err)
	}
	ref, _ := name.ParseReference(s.Host() + "/a")
	tr := remote.WithTransport(client(t).Transport)
	for _, c := range []struct {
		who string
		a   authn.Authenticator
		ok  bool
	}{
		{"nobody", authn.Anonymous, false},
		{"wrong password", &authn.Basic{Username: "u", Password: "x"}, false},
		{"password", &authn.Basic{Username: "u", Password: "p"}, true},
		{"identity token", authn.FromConfig(authn.AuthConfig{IdentityToken: "id"}), true},
		{"wrong identity token", authn.FromConfig(authn.AuthConfig{IdentityToken: "no"}), false},
	} {
		if _, err := remote.Get(ref, tr, remote.WithAuth(c.a)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.who, err)
		}
	}

	var token string
	for k := range s.auth.tokens {
		token = k
	}
	ask := func() int {
		r, _ := http.NewRequest(http.MethodGet, s.URL()+"/v2/a/tags/list", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := client(t).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := ask(); got != 200 {
		t.Errorf("fresh token: %d", got)
	}
	mu.Lock()
	now = now.Add(2 * time.Minute)
	mu.Unlock()
	if got := ask(); got != 401 {
		t.Errorf("old token: %d", got)
	}
}

func TestObjectStore(t *testing.T) {
	var mu sync.Mutex
	now := time.Unix(1e9, 0)
	s := start(t, Options{ObjectStore: true, URLTTL: time.Minute, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}})
	img, digest, blob := image(t)
	if _, err := s.AddImage("a", img); err != nil {
		t.Fatal(err)
	}
	c := client(t)
	resp, b, err := get(t, c, s.URL()+"/v2/a/blobs/"+digest, "bytes=5-9")
	if err != nil || resp.StatusCode != 206 || !bytes.Equal(b, blob[5:10]) || resp.Request.URL.Host != s.ObjectHost() {
		t.Fatalf("%v %v %q", err, resp, b)
	}
	signed := resp.Request.URL.String()
	r, _ := http.NewRequest(http.MethodGet, signed, nil)
	r.SetBasicAuth("u", "p")
	if resp, err := c.Do(r); err != nil || resp.StatusCode != 400 || s.Stats().Leaked != 1 {
		t.Errorf("credentials at the object store: %v %v, %d counted", err, resp, s.Stats().Leaked)
	} else {
		resp.Body.Close()
	}
	mu.Lock()
	now = now.Add(time.Hour)
	mu.Unlock()
	if resp, _, err := get(t, c, signed, ""); err != nil || resp.StatusCode != 403 {
		t.Errorf("old URL: %v %v", err, resp)
	}
	if resp, _, err := get(t, c, signed+"0", ""); err != nil || resp.StatusCode != 403 {
		t.Errorf("forged URL: %v %v", err, resp)
	}
}

func TestTLS(t *testing.T) {
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{CA: ca, ClientCerts: true})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	cert, key, err := ca.Client("me")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		conf *tls.Config
		ok   bool
	}{
		{"system roots", &tls.Config{Certificates: []tls.Certificate{pair}}, false},
		{"no certificate", &tls.Config{RootCAs: roots}, false},
		{"all", &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}, true},
	} {
		tr := &http.Transport{TLSClientConfig: c.conf, ForceAttemptHTTP2: true}
		_, _, err := get(t, &http.Client{Transport: tr}, s.URL()+"/v2/", "")
		tr.CloseIdleConnections()
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestFaults(t *testing.T) {
	s := start(t, Options{})
	img, digest, blob := image(t)
	if _, err := s.AddImage("a", img); err != nil {
		t.Fatal(err)
	}
	url := s.URL() + "/v2/a/blobs/" + digest
	flipped := bytes.Clone(blob[100:300])
	flipped[50] ^= 1
	want := blob[100:300]
	for _, c := range []struct {
		name  string
		fault Fault
		check func(r *http.Response, b []byte, err error) bool
	}{
		{"status", Status(429, "Retry-After", "2"), func(r *http.Response, _ []byte, err error) bool {
			return err == nil && r.StatusCode == 429 && r.Header.Get("Retry-After") == "2"
		}},
		{"ignore range", IgnoreRange(), func(r *http.Response, b []byte, err error) bool {
			return err == nil && r.StatusCode == 200 && bytes.Equal(b, blob) && r.Header.Get("Accept-Ranges") == ""
		}},
		{"flip byte", FlipByte(150), func(_ *http.Response, b []byte, err error) bool { return err == nil && bytes.Equal(b, flipped) }},
		{"flip byte elsewhere", FlipByte(99), func(_ *http.Response, b []byte, err error) bool { return err == nil && bytes.Equal(b, want) }},
		{"shift range", ShiftRange(3), func(r *http.Response, b []byte, err error) bool {
			return r.Header.Get("Content-Range") == fmt.Sprintf("bytes 103-302/%d", len(blob)) && bytes.Equal(b, want)
		}},
		{"header", Header("Content-Encoding", "gzip"), func(_ *http.Response, b []byte, err error) bool {
			return err == nil && bytes.Equal(b, want)
		}},
		{"short", Short(20), func(r *http.Response, b []byte, err error) bool {
			return err == nil && r.ContentLength == 20 && bytes.Equal(b, want[:20])
		}},
		{"cut", CutAt(20), func(r *http.Response, b []byte, err error) bool {
			return errors.Is(err, io.ErrUnexpectedEOF) && r.ContentLength == 200 && bytes.Equal(b, want[:20])
		}},
		{"reset", ResetAt(20), func(_ *http.Response, b []byte, err error) bool { return err != nil && len(b) <= 20 }},
		{"refuse", Refuse(), func(r *http.Response, _ []byte, err error) bool { return err != nil && r == nil }},
		{"throttle", Throttle(1 << 20), func(_ *http.Response, b []byte, err error) bool { return err == nil && bytes.Equal(b, want) }},
		{"latency", Latency(time.Millisecond), func(_ *http.Response, b []byte, err error) bool { return err == nil && bytes.Equal(b, want) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := s.Inject(Match{Op: Blob, Ref: digest, Ranged: true}, c.fault)
			defer in.Remove()
			cl := client(t)
			if c.name == "header" {
				cl.Transport.(*http.Transport).DisableCompression = true
			}
			r, b, err := get(t, cl, url, "bytes=100-299")
			if !c.check(r, b, err) || in.Hits() != 1 {
				t.Errorf("%v, %d bytes, error %v, %d hits", r, len(b), err, in.Hits())
			}
		})
	}
	if r, b, err := get(t, client(t), url, "bytes=100-299"); err != nil || r.StatusCode != 206 || !bytes.Equal(b, want) {
		t.Errorf("after all faults: %v %v", r, err)
	}
}

func TestStallEndsWithTheClient(t *testing.T) {
	s := start(t, Options{})
	img, digest, _ := image(t)
	if _, err := s.AddImage("a", img); err != nil {
		t.Fatal(err)
	}
	s.Inject(Match{Op: Blob}, StallAt(10))
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/v2/a/blobs/"+digest, nil)
	resp, err := client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := resp.Body.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("read after cancel: %v", err)
	}
}

func TestMatchSkipsAndCounts(t *testing.T) {
	s := start(t, Options{})
	in := s.Inject(Match{Op: Ping, Method: http.MethodGet, Skip: 1, Times: 2}, Status(503))
	c := client(t)
	var got []int
	for range 4 {
		resp, _, err := get(t, c, s.URL()+"/v2/", "")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, resp.StatusCode)
	}
	if want := []int{200, 503, 503, 200}; fmt.Sprint(got) != fmt.Sprint(want) || in.Hits() != 2 {
		t.Errorf("answers %v, want %v; %d hits", got, want, in.Hits())
	}
}
