package remote

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock is a fake clock; sleeping moves it.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (c *clock) sleep(ctx context.Context, d time.Duration) error {
	c.add(d)
	return ctx.Err()
}

// tokenRegistry is a testRegistry with a token server on the same host.
type tokenRegistry struct {
	*testRegistry
	clock    *clock
	password atomic.Value // string: what user "u" needs; "" = anonymous pull is allowed
	tokens   atomic.Int64 // issued
	life     time.Duration
	identity string // accepted identity token
	revoked  atomic.Int64
}

func newTokenRegistry(t *testing.T) *tokenRegistry {
	r := &tokenRegistry{testRegistry: newTestRegistry(t), clock: newClock(), life: 5 * time.Minute}
	r.password.Store("")
	r.hook = r.serve
	r.image("a/b", "1", "linux/amd64", randomBytes(1<<20))
	return r
}

func (r *tokenRegistry) client(t *testing.T, o Options) *Client {
	c := newTestClient(t, o)
	c.now, c.sleep = r.clock.now, r.clock.sleep
	return c
}

func (r *tokenRegistry) serve(w http.ResponseWriter, req *http.Request) bool {
	if req.URL.Path == "/token" {
		r.issue(w, req)
		return true
	}
	var n, expires int64
	fmt.Sscanf(req.Header.Get("Authorization"), "Bearer token-%d-%d", &n, &expires)
	if n == 0 || n <= r.revoked.Load() || r.clock.now().Unix() >= expires {
		repo, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/manifests")
		repo, _, _ = strings.Cut(repo, "/blobs")
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:%s:pull"`, r.URL, repo))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	return false
}

func (r *tokenRegistry) issue(w http.ResponseWriter, req *http.Request) {
	_, password, _ := req.BasicAuth()
	if req.Method == http.MethodPost {
		req.ParseForm()
		if req.Form.Get("refresh_token") == r.identity && r.identity != "" {
			password = r.password.Load().(string)
		}
	}
	if password != r.password.Load() {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":"bad password %s"}]}`, password)
		return
	}
	n := r.tokens.Add(1)
	json.NewEncoder(w).Encode(map[string]any{
		"token": fmt.Sprintf("token-%d-%d", n, r.clock.now().Add(r.life).Unix()), "expires_in": int(r.life.Seconds()),
	})
}

func TestBearerTokens(t *testing.T) {
	checkLeaks(t)
	r := newTokenRegistry(t)
	c := r.client(t, Options{})
	ctx := context.Background()
	r.seen()
	img, err := c.Resolve(ctx, r.host()+"/a/b:1", amd64)
	if err != nil {
		t.Fatal(err)
	}
	// manifest, token, manifest, config: learning what the registry wants costs no request of its own
	if got := r.seen(); len(got) != 4 || r.tokens.Load() != 1 {
		t.Errorf("%d tokens, requests %q", r.tokens.Load(), got)
	}
	b := c.Blob(img, img.Layers[0], Access{})
	read := func() {
		t.Helper()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := b.ReadAt(ctx, make([]byte, 2<<20), 0); err == nil {
					t.Error("read more than there is")
				} else if err.Error() != "EOF" {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	read()
	if n := r.tokens.Load(); n != 1 {
		t.Errorf("%d tokens for one repository", n)
	}
	r.seen()
	r.clock.add(r.life - 20*time.Second) // it lasts, but not long
	read()
	for _, line := range r.seen() {
		if !strings.Contains(line, "token") && !strings.Contains(line, "bytes=") {
			t.Errorf("unexpected request %s", line)
		}
	}
	if n := r.tokens.Load(); n != 2 {
		t.Errorf("%d tokens after the first was about to expire, want 2", n)
	}
	r.revoked.Store(2) // a token may be refused before its time
	read()
	if n := r.tokens.Load(); n != 3 {
		t.Errorf("%d tokens after one was revoked, want 3", n)
	}
	r.clock.add(12 * time.Hour)
	read()
	if n := r.tokens.Load(); n != 4 {
		t.Errorf("%d tokens half a day later, want 4", n)
	}
}

// Twelve hours later the password has changed too: the whole chain is run again.
func TestCredentialChainIsRunAgain(t *testing.T) {
	checkLeaks(t)
	r := newTokenRegistry(t)
	r.password.Store("old")
	store := &mapCredentials{m: map[string]Credential{r.host(): {Username: "u", Password: "old"}}}
	c := r.client(t, Options{Credentials: store})
	img, err := c.Resolve(context.Background(), r.host()+"/a/b:1", amd64)
	if err != nil {
		t.Fatal(err)
	}
	b := c.Blob(img, img.Layers[0], Access{})
	r.clock.add(12 * time.Hour)
	r.password.Store("new")
	if _, err := b.ReadAt(context.Background(), make([]byte, 10), 0); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("with the old password: %v", err)
	}
	store.set(r.host(), Credential{Username: "u", Password: "new"})
	if _, err := b.ReadAt(context.Background(), make([]byte, 10), 0); err != nil {
		t.Errorf("with the new password: %v", err)
	}
}

type mapCredentials struct {
	mu sync.Mutex
	m  map[string]Credential
}

func (m *mapCredentials) set(host string, c Credential) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.m[host] = c
}

func (m *mapCredentials) Get(_ context.Context, host string) (Credential, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.m[host]
	return c, ok, nil
}

// The order in which credentials are looked for, and that none of them shows in an error.
func TestCredentialOrder(t *testing.T) {
	checkLeaks(t)
	const want = "the-right-one"
	auth := func(password string) string { return base64.StdEncoding.EncodeToString([]byte("u:" + password)) }
	for _, tt := range []struct {
		name, flag, keyring, config, docker, podman string
		ok                                          bool
	}{
		{"none", "", "", "", "", "", false},
		{"flag", want, "x", "x", "x", "x", true},
		{"keyring", "", want, "x", "x", "x", true},
		{"config.json", "", "", want, "x", "x", true},
		{"Docker", "", "", "", want, "x", true},
		{"podman", "", "", "", "", want, true},
		{"wrong flag", "x-secret", want, want, want, want, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newTokenRegistry(t)
			r.password.Store(want)
			home := t.TempDir()
			write := func(path, password string) {
				if password == "" {
					return
				}
				os.MkdirAll(filepath.Dir(path), 0o700)
				os.WriteFile(path, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, r.host(), auth(password)), 0o600)
			}
			t.Setenv("HOME", home)
			t.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker"))
			t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, ".config"))
			t.Setenv("XDG_RUNTIME_DIR", filepath.Join(home, "run"))
			write(filepath.Join(home, ".docker/config.json"), tt.docker)
			write(filepath.Join(home, "run/containers/auth.json"), tt.podman)
			o := Options{Config: &Config{Hosts: map[string]*Host{}}}
			if tt.keyring != "" {
				o.Credentials = &mapCredentials{m: map[string]Credential{r.host(): {Username: "u", Password: tt.keyring}}}
			}
			a := amd64
			if tt.config != "" {
				o.Config.Hosts[r.host()] = &Host{Insecure: true, Auth: &HostAuth{Username: "u", PasswordEnv: "PW", Where: "config.json:1: x"}}
				a.Env = map[string]string{"PW": tt.config}
			}
			if tt.flag != "" {
				a.Username, a.Password = "u", tt.flag
			}
			_, err := r.client(t, o).Resolve(context.Background(), r.host()+"/a/b:1", a)
			if tt.ok && err != nil {
				t.Error(err)
			}
			if !tt.ok && (!errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "msb-fs login "+r.host()) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n")) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestIdentityToken(t *testing.T) {
	r := newTokenRegistry(t)
	r.password.Store("nobody knows it")
	r.identity = "identity"
	c := r.client(t, Options{Credentials: &mapCredentials{m: map[string]Credential{r.host(): {IdentityToken: "identity"}}}})
	if _, err := c.Resolve(context.Background(), r.host()+"/a/b:1", amd64); err != nil {
		t.Error(err)
	}
}

func TestUnsetPasswordVariable(t *testing.T) {
	r := newTestRegistry(t)
	r.image("a/b", "1", "linux/amd64", []byte("layer"))
	path := writeConfig(t, `{"registries": {"hosts": {
"needs.example.com": {"auth": {"username": "u", "password_env": "MSB_TEST_NOT_SET"}}}}}`)
	config, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	c := newTestClient(t, Options{Config: config})
	_, err = c.Resolve(context.Background(), "needs.example.com/a/b:1", amd64)
	if err == nil || !strings.Contains(err.Error(), path+":2: registries.hosts.needs.example.com.auth.password_env") || !strings.Contains(err.Error(), "MSB_TEST_NOT_SET") {
		t.Errorf("got %v", err)
	}
	if _, err := c.Resolve(context.Background(), r.host()+"/a/b:1", amd64); err != nil {
		t.Errorf("another host: %v", err)
	}
}

func TestBasicAuth(t *testing.T) {
	checkLeaks(t)
	r := newTestRegistry(t)
	r.image("a/b", "1", "linux/amd64", []byte("layer"))
	r.hook = func(w http.ResponseWriter, req *http.Request) bool {
		if _, p, _ := req.BasicAuth(); p != "secret" {
			w.Header().Set("WWW-Authenticate", `Negotiate, Basic realm="a, b", charset="UTF-8"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	for password, want := range map[string]error{"": ErrUnauthorized, "wrong": ErrUnauthorized, "secret": nil} {
		c := newTestClient(t, Options{})
		a := Access{Username: "u", Password: password, Platform: "linux/amd64"}
		if password == "" {
			a.Username = ""
		}
		r.seen()
		_, err := c.Resolve(context.Background(), r.host()+"/a/b:1", a)
		if !errors.Is(err, want) {
			t.Errorf("password %q: %v", password, err)
		}
		if n := len(r.seen()); n > 3 {
			t.Errorf("password %q: %d requests", password, n)
		}
	}
}

func TestParseChallenges(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`Bearer realm="https://a/token",service="s",scope="repository:a/b:pull,push"`, "[{bearer map[realm:https://a/token scope:repository:a/b:pull,push service:s]}]"},
		{`Basic realm=x`, "[{basic map[realm:x]}]"},
		{`Negotiate, Basic realm="a \"quoted\" b"`, `[{negotiate map[]} {basic map[realm:a "quoted" b]}]`},
		{`Bearer realm = "x" , service=y`, "[{bearer map[realm:x service:y]}]"},
		{`BEARER REALM="x"`, "[{bearer map[realm:x]}]"},
		{`Bearer realm="not closed`, "[{bearer map[realm:not closed]}]"},
		{`, , ;;;`, "[]"},
		{``, "[]"},
		{`="x"`, "[{x map[]}]"},
	} {
		if got := fmt.Sprint(parseChallenges(tt.in)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.in, got, tt.want)
		}
	}
}
