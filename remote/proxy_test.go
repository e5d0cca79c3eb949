package remote

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/microsandbox/msb-fs/internal/registry"
)

// testProxy is a proxy for HTTP and, by CONNECT, for what is in TLS. Whatever the name, it leads to one registry. It wants
// the user u with the password hunter2.
type testProxy struct {
	to       string
	requests atomic.Int32 // of plain HTTP
	tunnels  atomic.Int32
	refused  atomic.Int32
}

func (p *testProxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if user, password, ok := proxyLogin(req); !ok || user != "u" || password != "hunter2" {
		p.refused.Add(1)
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	if req.Method == http.MethodConnect {
		p.tunnel(w)
		return
	}
	p.requests.Add(1)
	req.RequestURI, req.URL.Host = "", p.to
	req.Header.Del("Proxy-Authorization")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	io.Copy(w, resp.Body)
}

// tunnel carries bytes both ways until either side ends.
func (p *testProxy) tunnel(w http.ResponseWriter) {
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer server.Close()
	p.tunnels.Add(1)
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { io.Copy(server, client); server.Close() }()
	io.Copy(client, server)
}

func proxyLogin(req *http.Request) (user, password string, ok bool) {
	r := http.Request{Header: http.Header{"Authorization": req.Header["Proxy-Authorization"]}}
	return r.BasicAuth()
}

// Requests for other hosts go through the proxy that the environment names, with TLS end to end; those for this machine, and for what
// NO_PROXY lists, do not.
func TestProxy(t *testing.T) {
	const child = "MSB_TEST_PROXY_CHILD" // "scheme host:port of the registry"
	if env := os.Getenv(child); env != "" {
		scheme, host, _ := strings.Cut(env, " ")
		proxyChild(t, scheme, host)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ca, err := registry.NewCA("registry.invalid")
	if err != nil {
		t.Fatal(err)
	}
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			var o registry.Options
			if scheme == "https" {
				o.CA = ca
			}
			s, err := registry.Start(o)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			addImage(t, s, "a/b:1", randomBytes(5000))
			p := &testProxy{to: s.Host()}
			proxy := httptest.NewServer(p)
			defer proxy.Close()
			at := (&url.URL{Scheme: "http", Host: strings.TrimPrefix(proxy.URL, "http://"), User: url.UserPassword("u", "hunter2")}).String()
			caFile := t.TempDir() + "/ca.pem"
			if err := os.WriteFile(caFile, ca.PEM(), 0o600); err != nil {
				t.Fatal(err)
			}
			// net/http reads the proxy's variables once per process.
			cmd := exec.Command(exe, "-test.run=^TestProxy$", "-test.v")
			cmd.Env = append(os.Environ(), child+"="+scheme+" "+s.Host(), "MSB_TEST_CA="+caFile,
				strings.ToUpper(scheme)+"_PROXY="+at, "NO_PROXY=direct.invalid,.internal.invalid")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			// Manifest, config, one range; a tunnel serves several requests.
			if n := p.requests.Load(); scheme == "http" && n != 3 {
				t.Errorf("%d requests went through the proxy, want 3", n)
			}
			if n := p.tunnels.Load(); scheme == "https" && (n == 0 || n > 3) {
				t.Errorf("%d tunnels, want 1 to 3", n)
			}
			if p.refused.Load() != 0 {
				t.Error("the proxy was not told who asks")
			}
		})
	}
}

// proxyChild does what TestProxy looks at, in a process with the proxy's variables.
func proxyChild(t *testing.T, scheme, host string) {
	insecure := scheme == "http"
	a := Access{Insecure: &insecure, Platform: "linux/amd64"}
	if !insecure {
		pem, err := os.ReadFile(os.Getenv("MSB_TEST_CA"))
		if err != nil {
			t.Fatal(err)
		}
		a.CACerts = pem
	}
	c := newTestClient(t, Options{})
	ctx := context.Background()
	img, err := c.Resolve(ctx, "registry.invalid/a/b:1", a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Blob(img, img.Layers[0], a).ReadAt(ctx, make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(ctx, host+"/a/b:1", a); err != nil {
		t.Errorf("a registry on this machine: %v", err)
	}
	for _, direct := range []string{"direct.invalid", "x.internal.invalid"} {
		_, err := c.Resolve(ctx, direct+"/a/b:1", a)
		if !errors.Is(err, ErrUnreachable) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a host in NO_PROXY: %v", err)
		}
	}
}

// A proxy that refuses is told of, its password is not.
func TestProxyRefuses(t *testing.T) {
	p := &testProxy{}
	proxy := httptest.NewServer(p)
	defer proxy.Close()
	at := &url.URL{Scheme: "http", Host: strings.TrimPrefix(proxy.URL, "http://"), User: url.UserPassword("u", "hunter3")}
	for _, insecure := range []bool{true, false} {
		c := newTestClient(t, Options{Proxy: http.ProxyURL(at)})
		_, err := c.Resolve(context.Background(), "registry.invalid/a/b:1", Access{Insecure: &insecure})
		if err == nil || strings.Contains(err.Error(), "hunter3") || !strings.Contains(strings.ToLower(err.Error()), "proxy") || strings.Contains(err.Error(), "\n") {
			t.Errorf("insecure %t: %v", insecure, err)
		}
	}
}
