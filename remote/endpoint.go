package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/microsandbox/msb-fs/internal/priority"
)

const userAgent = "msb-fs"

// endpoint is one registry host as one set of credentials reaches it.
type endpoint struct {
	client    *Client
	host      *host
	reg       name.Registry
	transport *network
	auth      *authorizer
	ca        []byte       // PEM, given for the call; counts for where the registry redirects to as well
	scheme    atomic.Value // string; unset while it is not known whether a loopback registry speaks TLS
}

func (e *endpoint) setScheme(s string) { e.scheme.Store(s) }

// warm makes connections ahead, where it is known how.
func (e *endpoint) warm() {
	if scheme, known := e.scheme.Load().(string); known {
		e.transport.warm(&url.URL{Scheme: scheme, Host: e.reg.RegistryStr()})
	}
}

// warmElsewhere does so for where it redirects to.
func (e *endpoint) warmElsewhere(u *url.URL) {
	e.client.mu.Lock()
	n, err := e.client.transport(canonicalHost(u.Host), e.ca)
	e.client.mu.Unlock()
	if err == nil {
		n.warm(u)
	}
}

// request is what an endpoint is asked.
type request struct {
	path   string // from /v2/ on
	query  string // as in a URL; of redirects within the registry
	repo   string // whose pull scope the request needs
	header http.Header
	count  *counter
	class  priority.Class

	method string // "" is GET
	push   bool   // the request needs the repository's push scope too
	body   func() (io.ReadCloser, error)
	length int64 // of body
}

// do sends a request with credentials, answering a challenge once. Redirects are returned, not followed. The caller
// closes the response's body.
func (e *endpoint) do(ctx context.Context, r request) (*http.Response, error) {
	for attempt := 0; ; attempt++ {
		resp, err := e.send(ctx, r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || attempt == 2 {
			return resp, nil
		}
		again, err := e.auth.answer(ctx, resp, r, attempt)
		if err != nil {
			discard(resp)
			return nil, err
		}
		if !again {
			return resp, nil
		}
		discard(resp)
	}
}

// send sends one request over the scheme the host speaks.
func (e *endpoint) send(ctx context.Context, r request) (*http.Response, error) {
	scheme, known := e.scheme.Load().(string)
	if !known {
		scheme = "https"
	}
	resp, err := e.sendOver(ctx, scheme, r)
	if speaksHTTP(err) && !known {
		if resp, err = e.sendOver(ctx, "http", r); err == nil {
			e.setScheme("http")
		}
		return resp, err
	}
	if err == nil && !known {
		e.setScheme("https")
	}
	return resp, err
}

func (e *endpoint) sendOver(ctx context.Context, scheme string, r request) (*http.Response, error) {
	u := &url.URL{Scheme: scheme, Host: e.reg.RegistryStr(), Path: r.path, RawQuery: r.query}
	req, err := newRequest(ctx, u, r)
	if err != nil {
		return nil, err
	}
	if err := e.auth.authorize(ctx, req, r, scheme); err != nil {
		return nil, err
	}
	r.count.addRequest(r.class)
	resp, err := e.transport.RoundTrip(req)
	if err != nil {
		return nil, explainTLS(cleanURL(err), e.host.name)
	}
	return resp, nil
}

func newRequest(ctx context.Context, u *url.URL, r request) (*http.Request, error) {
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, cleanURL(err)
	}
	if r.body != nil {
		if req.Body, err = r.body(); err != nil {
			return nil, err
		}
		req.ContentLength = r.length
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept-Encoding", "identity")
	return req, nil
}

const maxRedirects = 5

// follow goes after redirects to whatever host, without credentials, and returns the first other answer and where it
// came from.
func (e *endpoint) follow(ctx context.Context, resp *http.Response, r request) (*http.Response, *url.URL, error) {
	for range maxRedirects {
		if !isRedirect(resp.StatusCode) {
			return resp, resp.Request.URL, nil
		}
		to, err := e.redirect(resp)
		discard(resp)
		if err != nil {
			return nil, nil, err
		}
		if resp, err = e.doElsewhere(ctx, to, r); err != nil {
			return nil, nil, err
		}
	}
	discard(resp)
	return nil, nil, &protocolError{e.host.name, fmt.Sprintf("redirects more than %d times", maxRedirects)}
}

// redirect reads where a redirect leads. It never leads from HTTPS to plain HTTP.
func (e *endpoint) redirect(resp *http.Response) (*url.URL, error) {
	text, from := resp.Header.Get("Location"), resp.Request.URL
	to, err := from.Parse(text)
	switch {
	case err != nil || text == "" || to.Host == "":
		return nil, &protocolError{e.host.name, "redirects to nowhere"}
	case to.Scheme != "https" && !(to.Scheme == "http" && from.Scheme == "http"):
		return nil, &protocolError{e.host.name, fmt.Sprintf("redirects from %s to %s, which is not safe", from.Scheme, oneLine(to.Scheme))}
	}
	to.User = nil
	return to, nil
}

// doElsewhere sends a request to a URL a registry named. Only a redirect within the registry itself gets its
// credentials.
func (e *endpoint) doElsewhere(ctx context.Context, u *url.URL, r request) (*http.Response, error) {
	if u.Host == e.reg.RegistryStr() && u.Scheme == e.scheme.Load() {
		r.path, r.query = u.Path, u.RawQuery
		return e.do(ctx, r)
	}
	e.client.mu.Lock()
	t, err := e.client.transport(canonicalHost(u.Host), e.ca)
	e.client.mu.Unlock()
	if err != nil {
		return nil, err
	}
	req, err := newRequest(ctx, u, r)
	if err != nil {
		return nil, err
	}
	r.count.addRequest(r.class)
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, explainTLS(cleanURL(err), u.Host)
	}
	return resp, nil
}

func isRedirect(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// discard reads what little is left of a body, so that its connection can be used again, and closes it.
func discard(resp *http.Response) {
	if resp.ContentLength <= 64<<10 {
		io.CopyN(io.Discard, resp.Body, 64<<10)
	}
	resp.Body.Close()
}

// failure makes an error of an answer and closes it.
func failure(resp *http.Response, now time.Time) *statusError {
	defer resp.Body.Close()
	e := &statusError{host: resp.Request.URL.Host, code: resp.StatusCode, retryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), now)}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	// https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#error-codes
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0 {
		e.detail = oneLine(doc.Errors[0].Code + ": " + doc.Errors[0].Message)
	}
	return e
}

// parseRetryAfter reads a number of seconds or a date (RFC 9110, section 10.2.3); 0 when there is neither.
func parseRetryAfter(s string, now time.Time) time.Duration {
	const most = time.Hour
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.Duration(min(max(n, 0), int64(most/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return min(max(t.Sub(now), 0), most)
	}
	return 0
}

// cleanURL takes the URL out of an error: the query of a signed URL is a credential.
func cleanURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// parseContentRange reads "bytes first-last/total" (RFC 9110, section 14.4); total is -1 where the server does not say.
func parseContentRange(s string) (first, last, total int64, ok bool) {
	s, found := strings.CutPrefix(strings.TrimSpace(s), "bytes ")
	if !found {
		return 0, 0, 0, false
	}
	span, all, found := strings.Cut(s, "/")
	if !found {
		return 0, 0, 0, false
	}
	a, b, found := strings.Cut(span, "-")
	if !found {
		return 0, 0, 0, false
	}
	var ok1, ok2, ok3 bool
	first, ok1 = parseSize(a)
	last, ok2 = parseSize(b)
	total, ok3 = parseSize(all)
	if all == "*" {
		total, ok3 = -1, true
	}
	if !ok1 || !ok2 || !ok3 || last < first || total >= 0 && last >= total {
		return 0, 0, 0, false
	}
	return first, last, total, true
}

// parseSize reads decimal digits and nothing else: no sign, no space.
func parseSize(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil && s[0] != '+'
}
