package remote

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// authorizer answers one endpoint's challenges. A registry is asked without credentials first; what it wants is learned
// from its first 401, which costs no more than asking /v2/ would and nothing where it wants nothing.
type authorizer struct {
	endpoint    *endpoint
	credentials func(ctx context.Context, repo string) (authn.AuthConfig, error)

	lock      chan struct{}     // of capacity 1: held while what follows is read or changed, also while a token is fetched
	challenge challenge         // what the registry wants; scheme "" = not known to want anything
	basic     map[string]string // Authorization headers of a basic registry, by repository
	tokens    map[string]*token // by the scope asked for here
	scopes    map[string]string // by the same: what the registry calls it, as proxies that rename repositories do
}

// token is a bearer token of one scope.
type token struct {
	header  string
	expires time.Time
	refresh time.Time // a new one is fetched from here on
}

// authorize adds to req what the registry is known to want.
func (a *authorizer) authorize(ctx context.Context, req *http.Request, r request, scheme string) error {
	if err := a.acquire(ctx); err != nil {
		return err
	}
	defer a.release()
	switch a.challenge.scheme {
	case "basic":
		header, known := a.basic[r.repo]
		if !known {
			var err error
			if header, err = a.basicHeader(ctx, r.repo); err != nil {
				return err
			}
		}
		if header != "" {
			req.Header.Set("Authorization", header)
		}
	case "bearer":
		t, err := a.token(ctx, r, scheme)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", t.header)
	}
	return nil
}

// answer reads the challenge of a 401 and prepares for it; again says that the request is worth sending once more. On
// a second 401 everything, the credentials included, has been got afresh.
func (a *authorizer) answer(ctx context.Context, resp *http.Response, r request, attempt int) (again bool, err error) {
	c, ok := pickChallenge(resp.Header)
	if !ok {
		return false, nil
	}
	sent := resp.Request.Header.Get("Authorization")
	if err := a.acquire(ctx); err != nil {
		return false, err
	}
	defer a.release()
	if a.challenge.scheme == c.scheme && a.current(r) != sent {
		return true, nil // somebody else has done it meanwhile
	}
	a.challenge = c
	delete(a.tokens, r.scope())
	if its := c.params["scope"]; its != "" {
		a.scopes[r.scope()] = its
	}
	switch c.scheme {
	case "basic":
		header, err := a.basicHeader(ctx, r.repo)
		return header != "" && header != sent, err
	default:
		_, err := a.token(ctx, r, resp.Request.URL.Scheme)
		return err == nil, err
	}
}

// basicHeader asks for the credentials of a repository afresh; the result is "" where there are none. The caller holds
// the lock.
func (a *authorizer) basicHeader(ctx context.Context, repo string) (string, error) {
	cfg, err := a.credentials(ctx, repo)
	if err != nil {
		return "", err
	}
	header := ""
	if cfg.Username != "" || cfg.Password != "" {
		header = "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password))
	}
	a.basic[repo] = header
	return header, nil
}

// current is the Authorization header that r would be sent with now.
func (a *authorizer) current(r request) string {
	if a.challenge.scheme == "basic" {
		return a.basic[r.repo]
	}
	if t := a.tokens[r.scope()]; t != nil {
		return t.header
	}
	return ""
}

func (r request) scope() string {
	if r.repo == "" { // the registry itself
		return ""
	}
	if r.push {
		return "repository:" + r.repo + ":pull,push"
	}
	return "repository:" + r.repo + ":pull"
}

// token returns a token that will last a while, from the cache or the realm. The caller holds the lock, so that one of
// many readers fetches it.
func (a *authorizer) token(ctx context.Context, r request, scheme string) (*token, error) {
	scope := r.scope()
	now := a.endpoint.client.now()
	if t := a.tokens[scope]; t != nil && now.Before(t.refresh) {
		return t, nil
	}
	t, err := a.exchange(ctx, r, scope, scheme, now)
	if err == nil {
		a.tokens[scope] = t
		return t, nil
	}
	if old := a.tokens[scope]; old != nil && now.Before(old.expires) && ctx.Err() == nil {
		return old, nil // it is still good, and the realm may be better next time
	}
	return nil, err
}

func (a *authorizer) exchange(ctx context.Context, r request, scope, scheme string, now time.Time) (*token, error) {
	cfg, err := a.credentials(ctx, r.repo)
	if err != nil {
		return nil, err
	}
	if cfg.RegistryToken != "" {
		return &token{header: "Bearer " + cfg.RegistryToken, refresh: now.Add(time.Minute), expires: now.Add(time.Minute)}, nil
	}
	e := a.endpoint
	ctx, cancel := context.WithTimeout(ctx, e.client.attemptTimeout())
	defer cancel()
	r.count.addRequest(r.class)
	var scopes []string
	if its := a.scopes[scope]; its != "" {
		scopes = append(scopes, its)
	}
	if scope != "" && scope != a.scopes[scope] {
		scopes = append(scopes, scope)
	}
	got, err := transport.Exchange(ctx, e.reg, authn.FromConfig(cfg), e.transport, scopes,
		&transport.Challenge{Scheme: "bearer", Parameters: a.challenge.params, Insecure: scheme == "http"})
	if err != nil {
		return nil, tokenError(err, e.host.name)
	}
	value := got.Token
	if value == "" {
		value = got.AccessToken
	}
	// https://distribution.github.io/distribution/spec/auth/token/: 60 seconds where nothing is said
	life := time.Minute
	if got.ExpiresIn > 0 {
		life = min(time.Duration(got.ExpiresIn), 24*3600) * time.Second
	}
	return &token{header: "Bearer " + value, expires: now.Add(life), refresh: now.Add(life - min(life/5, 30*time.Second))}, nil
}

// tokenError keeps the URL, which may hold an account's name, and the answer's body, which may hold a token, out of the message.
func tokenError(err error, host string) error {
	var t *transport.Error
	if errors.As(err, &t) {
		e := &statusError{host: "the token server of " + host, code: t.StatusCode}
		if len(t.Errors) > 0 {
			e.detail = oneLine(string(t.Errors[0].Code))
		}
		if t.StatusCode == http.StatusBadRequest {
			return fmt.Errorf("%w: %w", ErrUnauthorized, e)
		}
		return e
	}
	return explainTLS(cleanURL(err), host)
}

func (a *authorizer) acquire(ctx context.Context) error {
	select {
	case a.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *authorizer) release() { <-a.lock }
