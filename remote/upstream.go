package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// upstream is where one repository is to be had: its mirrors, in order, and its own registry last.
type upstream struct {
	client  *Client
	sources []*source // immutable
	waits   waits

	mu sync.Mutex // guards source.badUntil
}

// source is a repository on one endpoint.
type source struct {
	*endpoint
	repo     string
	badUntil time.Time // it failed; others go first until then
}

// mirrorPatience is how long a document is waited for while there is somewhere else to ask.
const mirrorPatience = 5 * time.Second

// mirrorMemory is for how long a source that failed goes last.
const mirrorMemory = 30 * time.Second

// upstream finds the sources of a repository for a call. What is remembered of them is shared by calls with the same
// settings.
func (c *Client) upstream(repo name.Repository, a Access) (*upstream, error) {
	host := canonicalHost(repo.RegistryStr())
	var sources []*source
	for _, text := range c.hostConfig(host).Mirrors {
		m, err := parseMirror(text)
		if err != nil {
			return nil, fmt.Errorf("mirror of %s %w", host, err)
		}
		e, err := c.endpoint(m.host, m.scheme, Access{CACerts: a.CACerts, Env: a.Env}, false)
		if err != nil {
			return nil, err
		}
		sources = append(sources, &source{endpoint: e, repo: m.prefix + repo.RepositoryStr()})
	}
	origin, err := c.endpoint(host, "", a, true)
	if err != nil {
		return nil, err
	}
	key := upstreamKey{origin, repo.RepositoryStr()}
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.upstreams[key]
	if u == nil {
		u = &upstream{client: c, sources: append(sources, &source{endpoint: origin, repo: key.repo})}
		c.upstreams[key] = u
	}
	return u, nil
}

type upstreamKey struct {
	origin *endpoint
	repo   string
}

// order lists the sources as they are to be tried now: those that failed lately last.
func (u *upstream) order() []*source {
	now := u.client.now()
	u.mu.Lock()
	defer u.mu.Unlock()
	good, bad := make([]*source, 0, len(u.sources)), []*source(nil)
	for _, s := range u.sources {
		if s.badUntil.After(now) {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

// report remembers how asking s went. A source that answers is well, whatever it answers; it goes last for a while if
// it has not got what another is said to have.
func (u *upstream) report(s *source, err error) {
	now := u.client.now()
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrClosed) {
		return
	}
	u.waits.tried(err)
	var status *statusError
	var protocol *protocolError
	if err == nil || errors.As(err, &protocol) || errors.As(err, &status) && (status.code < 500 || status.storage) {
		s.host.breaker.succeeded()
	} else {
		s.host.breaker.failed(now, u.client.stall)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		s.badUntil = time.Time{}
	} else {
		s.badUntil = now.Add(mirrorMemory)
	}
}

// distrust makes the source that bytes last came from go last for a while.
func (u *upstream) distrust() {
	if len(u.sources) < 2 {
		return
	}
	first := u.order()[0]
	u.mu.Lock()
	defer u.mu.Unlock()
	first.badUntil = u.client.now().Add(mirrorMemory)
}

// attemptTimeout is how long one request may be silent before another is tried: so short that there is more than one
// try before the stall deadline.
func (c *Client) attemptTimeout() time.Duration {
	const most = 15 * time.Second
	if c.stall == 0 {
		return most
	}
	return min(most, c.stall/2)
}

// document is a small body fetched whole.
type document struct {
	status int // 200 or 304
	header http.Header
	body   []byte
}

// fetch gets a document of at most size bytes from the first source that has it. check looks at what came and may refuse it, in which case
// another source or another try follows. Somebody waits for it, so that a registry that cannot be connected to is given
// up after a few quick tries, and a slow or failing one at the stall deadline.
func (u *upstream) fetch(ctx context.Context, path func(*source) string, header http.Header, size int64, check func(*document) error) (*document, error) {
	c := u.client
	if u.client.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	u.waits.begin(c.now())
	defer u.waits.end()
	var failed error
	for try := 1; ; try++ {
		var wait time.Duration
		again := false
		order := u.order()
		for i, s := range order {
			limit := c.attemptTimeout()
			if i < len(order)-1 {
				limit = min(limit, mirrorPatience)
			}
			doc, err := u.fetchFrom(ctx, s, limit, request{path: path(s), repo: s.repo, header: header, count: &c.stats, class: priority.From(ctx)}, size)
			if err == nil {
				err = check(doc)
			}
			if ctx.Err() != nil {
				return nil, firstError(context.Cause(ctx), failed, err)
			}
			u.report(s, err)
			if err == nil {
				return doc, nil
			}
			// The registry's own word counts for more than a mirror's, and comes last.
			failed = err
			again = again || transient(err)
			var status *statusError
			if errors.As(err, &status) {
				wait = max(wait, status.retryAfter)
			}
		}
		if !again || try >= fetchTries(failed) {
			return nil, failed
		}
		if err := c.sleep(ctx, max(wait, backoff(try))); err != nil {
			return nil, firstError(err, failed, nil)
		}
		c.stats.addRetry()
	}
}

// fetchTries is how often a document is asked for in all when err is what keeps happening.
func fetchTries(err error) int {
	var status *statusError
	switch {
	case !errors.As(err, &status):
		return 4
	case status.storage && status.code < 500:
		return maxRefusals
	}
	return 8
}

// errDeadline is the stall deadline.
var errDeadline = errors.New("no answer within the stall deadline")

// withDeadline ends a context at the stall deadline or when the client is closed.
func (c *Client) withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stopClose := context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })
	stopTimer := func() bool { return true }
	if c.stall > 0 {
		stopTimer = time.AfterFunc(c.stall, func() { cancel(errDeadline) }).Stop
	}
	return ctx, func() { stopTimer(); stopClose(); cancel(context.Canceled) }
}

// firstError is what to tell when the wait for something has ended: what went wrong with it, unless the caller gave up.
func firstError(ended, failed, last error) error {
	if !errors.Is(ended, errDeadline) {
		return ended
	}
	if failed == nil {
		failed = last
	}
	if failed == nil || errors.Is(failed, context.Canceled) {
		return errDeadline
	}
	return fmt.Errorf("%w: %w", errDeadline, failed)
}

func (u *upstream) fetchFrom(ctx context.Context, s *source, patience time.Duration, r request, size int64) (*document, error) {
	watch := newWatch(ctx, patience)
	defer watch.stop()
	begin := u.client.now()
	var at *url.URL
	resp, err := s.do(watch.ctx, r)
	if err == nil {
		resp, at, err = s.follow(watch.ctx, resp, r)
	}
	if err != nil {
		return nil, watch.explain(err)
	}
	s.host.link.firstByte(u.client.now().Sub(begin), false)
	u.waits.progress(u.client.now())
	if at.Host != s.reg.RegistryStr() {
		s.host.redirects.Store(true)
		s.warmElsewhere(at) // blobs are where one of them is
	}
	switch {
	case resp.StatusCode == http.StatusNotModified && r.header.Get("If-None-Match") != "":
		discard(resp)
		return &document{status: resp.StatusCode, header: resp.Header}, nil
	case resp.StatusCode != http.StatusOK:
		err := failure(resp, u.client.now())
		err.storage = at.Host != s.reg.RegistryStr()
		return nil, err
	}
	defer resp.Body.Close()
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, &protocolError{s.host.name, fmt.Sprintf("sent a body in Content-Encoding %q, which was not asked for", oneLine(enc))}
	}
	body, err := watch.readAll(resp.Body, size)
	r.count.addBytes(r.class, len(body))
	if err != nil {
		return nil, watch.explain(err)
	}
	return &document{status: http.StatusOK, header: resp.Header, body: body}, nil
}
