package registry

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Auth is what a registry asks of its clients. The zero value asks nothing.
type Auth struct {
	// Username and Password are asked for by Basic authentication, or by the token service when Bearer is set.
	Username, Password string
	// IdentityToken is also taken by the token service, as a refresh token (OAuth2 POST).
	IdentityToken string
	// Bearer makes the registry take tokens only, of a token service at /token of the same host. Without a Username the
	// service gives tokens to everybody, as Docker Hub does.
	Bearer bool
	// TokenTTL is how long a token is good for; 0 is five minutes.
	TokenTTL time.Duration
}

// authority hands out and checks tokens.
type authority struct {
	a   Auth
	now func() time.Time

	mu     sync.Mutex
	tokens map[string]time.Time // when each ends
}

func newAuthority(a Auth, now func() time.Time) *authority {
	if a.TokenTTL == 0 {
		a.TokenTTL = 5 * time.Minute
	}
	return &authority{a: a, now: now, tokens: map[string]time.Time{}}
}

// ExpireTokens makes every token handed out so far worthless.
func (s *Server) ExpireTokens() {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	clear(s.auth.tokens)
}

// SetPassword changes what Basic authentication and the token service ask for.
func (s *Server) SetPassword(password string) {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	s.auth.a.Password = password
}

// allow says whether a request may go on, and answers it when it may not.
func (a *authority) allow(w http.ResponseWriter, r *http.Request, base string, t target) bool {
	switch {
	case a.a.Bearer:
		if a.valid(r) {
			return true
		}
		scope := ""
		if t.repo != "" {
			scope = fmt.Sprintf(`,scope="repository:%s:pull,push"`, t.repo)
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="msb-registry"%s`, base, scope))
	case a.a.Username != "":
		if a.basic(r) {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="msb-registry"`)
	default:
		return true
	}
	writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

func (a *authority) valid(r *http.Request) bool {
	const scheme = "Bearer "
	h := r.Header.Get("Authorization")
	if len(h) < len(scheme) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	end, ok := a.tokens[h[len(scheme):]]
	return ok && a.now().Before(end)
}

func (a *authority) basic(r *http.Request) bool {
	u, p, ok := r.BasicAuth()
	a.mu.Lock()
	defer a.mu.Unlock()
	return ok && subtle.ConstantTimeCompare([]byte(u+"\x00"+p), []byte(a.a.Username+"\x00"+a.a.Password)) == 1
}

// serveToken is a token service as https://distribution.github.io/distribution/spec/auth/token/ and .../oauth/ have it.
func (a *authority) serveToken(w http.ResponseWriter, r *http.Request) {
	ok := a.a.Username == "" && a.a.IdentityToken == "" || a.a.Username != "" && a.basic(r)
	if !ok && r.Method == http.MethodPost && r.ParseForm() == nil {
		switch r.PostForm.Get("grant_type") {
		case "refresh_token":
			ok = a.a.IdentityToken != "" && r.PostForm.Get("refresh_token") == a.a.IdentityToken
		case "password":
			a.mu.Lock()
			ok = a.a.Username != "" && r.PostForm.Get("username") == a.a.Username && r.PostForm.Get("password") == a.a.Password
			a.mu.Unlock()
		}
	}
	if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="msb-registry"`)
		writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	key := randomKey()
	token := hex.EncodeToString(key[:])
	now := a.now()
	a.mu.Lock()
	a.tokens[token] = now.Add(a.a.TokenTTL)
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{
		"token": token, "access_token": token,
		"expires_in": int(a.a.TokenTTL.Seconds()), "issued_at": now.UTC().Format(time.RFC3339),
	})
}

func randomKey() (k [32]byte) {
	rand.Read(k[:]) // never fails: see crypto/rand
	return k
}
