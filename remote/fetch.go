package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// ask sends one request to s for what is missing of f and takes in what comes. errNoRange says that the blob is being
// spooled instead.
func (f *flight) ask(s *source) error {
	b, c := f.blob, f.blob.client
	b.mu.Lock()
	class, got := f.class, f.got
	off, n := f.off+got, f.n-got
	b.mu.Unlock()
	watch := newWatch(c.ctx, c.attemptTimeout())
	detach := context.AfterFunc(f.ctx, watch.abandon)
	adopted := false
	defer func() {
		if detach(); !adopted {
			watch.stop()
		}
	}()

	a := f.request(watch.ctx, s, class, off, n)
	if a.err != nil {
		return watch.explain(a.err)
	}
	resp := a.resp
	s = a.source
	if resp.StatusCode == http.StatusOK && (off > 0 || n < b.size) {
		var err error
		if detach() {
			adopted, err = b.adopt(resp, watch, class)
		}
		if !adopted {
			resp.Body.Close()
		}
		if err != nil {
			return err
		}
		return errNoRange
	}
	defer resp.Body.Close()
	n, err := checkRange(resp, off, n, b.size)
	if err != nil {
		return err
	}
	if err = f.take(resp.Body, class, got, n, watch, s); err != nil {
		return watch.explain(err)
	}
	if got+n < f.n {
		return fmt.Errorf("%s: %w", s.host.name, io.ErrUnexpectedEOF)
	}
	return nil
}

// take copies n bytes of a body to buf[got:].
func (f *flight) take(body io.Reader, class priority.Class, got, n int64, watch *watch, s *source) error {
	all, begun := n, f.blob.client.now()
	for n > 0 {
		m, err := body.Read(f.buf[got : got+n])
		if m > 0 {
			watch.progress()
			now := f.blob.client.now()
			s.host.link.bytes(now, m)
			f.blob.up.waits.progress(now)
			f.blob.count.addBytes(class, m)
			f.advance(m)
			got, n = got+int64(m), n-int64(m)
		}
		if err != nil && n > 0 {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%s: %w", s.host.name, err)
		}
	}
	s.host.link.body(all, f.blob.client.now().Sub(begun))
	// The end of the body has to be seen, or its connection cannot be used again.
	var one [1]byte
	body.Read(one[:])
	return nil
}

// checkRange holds an answer to the range asked for and says how many bytes of it the body has, which may be fewer.
func checkRange(resp *http.Response, off, n, size int64) (int64, error) {
	host := resp.Request.URL.Host
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return 0, &protocolError{host, fmt.Sprintf("sent a blob in Content-Encoding %q, which was not asked for", oneLine(enc))}
	}
	if resp.StatusCode == http.StatusOK { // of all there is
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return 0, &protocolError{host, fmt.Sprintf("has a blob of %d bytes, but its manifest says %d", resp.ContentLength, size)}
		}
		return n, nil
	}
	text := resp.Header.Get("Content-Range")
	first, last, total, ok := parseContentRange(text)
	switch {
	case !ok:
		return 0, &protocolError{host, fmt.Sprintf("sent the Content-Range %q", oneLine(text))}
	case total >= 0 && total != size:
		return 0, &protocolError{host, fmt.Sprintf("has a blob of %d bytes, but its manifest says %d", total, size)}
	case first != off || last >= off+n:
		return 0, &protocolError{host, fmt.Sprintf("sent bytes %d-%d where %d-%d were asked for", first, last, off, off+n-1)}
	case resp.ContentLength >= 0 && resp.ContentLength != last-first+1:
		return 0, &protocolError{host, fmt.Sprintf("sent %d bytes as %q", resp.ContentLength, oneLine(text))}
	}
	return last - first + 1, nil
}

// request asks s for n bytes from off on: at the place it redirected to before, if that is still good, else at s. The
// answer's status is 200 or 206.
func (b *Blob) request(ctx context.Context, s *source, off, n int64, class priority.Class) (*http.Response, error) {
	c := b.client
	r := request{
		path: "/v2/" + s.repo + "/blobs/" + b.digest, repo: s.repo, count: &b.count, class: class,
		header: http.Header{"Range": {"bytes=" + strconv.FormatInt(off, 10) + "-" + strconv.FormatInt(off+n-1, 10)}},
	}
	answered := func() {}
	if s.host.redirects.Load() {
		var err error
		if answered, err = b.askAlone(ctx, s); err != nil {
			return nil, err
		}
		defer answered()
	}
	if l := b.location(s); l != nil {
		resp, err := s.doElsewhere(ctx, l.url, r)
		switch {
		case err != nil:
			b.relocate(s, l, nil)
			return nil, err
		case isBlob(resp):
			return resp, nil
		case resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests:
			discard(resp) // the URL has expired, or so it seems
			b.relocate(s, l, nil)
		default:
			return nil, storageFailure(resp, c.now())
		}
	}
	resp, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if !isRedirect(resp.StatusCode) {
		if !isBlob(resp) {
			return nil, failure(resp, c.now())
		}
		return resp, nil
	}
	s.host.redirects.Store(true)
	var first *location
	if to, err := s.redirect(resp); err == nil {
		s.warmElsewhere(to)
		first = &location{url: to, expires: expiry(to.Query())}
		b.relocate(s, nil, first)
		answered() // the others need not wait until this one has its bytes
	}
	resp, at, err := s.follow(ctx, resp, r)
	switch {
	case err != nil:
		b.relocate(s, first, nil)
		return nil, err
	case !isBlob(resp):
		b.relocate(s, first, nil)
		return nil, storageFailure(resp, c.now())
	case first == nil || at.String() != first.url.String(): // there was more than one redirect
		b.relocate(s, nil, &location{url: at, expires: expiry(at.Query())})
	}
	return resp, nil
}

func isBlob(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent
}

func storageFailure(resp *http.Response, now time.Time) error {
	err := failure(resp, now)
	err.storage = true
	return err
}

// location is where s redirected to last, if that is still good.
func (b *Blob) location(s *source) *location {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.locs[s]
	// A URL that is about to expire may do so on the way.
	if l == nil || !l.expires.IsZero() && b.client.now().Add(10*time.Second).After(l.expires) {
		return nil
	}
	return l
}

// askAlone waits while somebody else is asking s where the blob is, and makes others wait until answered is called, if it is
// not known. A registry that redirects is so asked once, not once for every range, and nobody is served any later for it.
func (b *Blob) askAlone(ctx context.Context, s *source) (answered func(), err error) {
	for b.location(s) == nil {
		b.mu.Lock()
		other := b.asking[s]
		if other == nil {
			mine := make(chan struct{})
			b.asking[s] = mine
			b.mu.Unlock()
			return sync.OnceFunc(func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				delete(b.asking, s)
				close(mine)
			}), nil
		}
		b.mu.Unlock()
		select {
		case <-other:
			if b.location(s) == nil {
				return func() {}, nil // it was not redirected, or failed: everybody for himself
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return func() {}, nil
}

// relocate replaces what is remembered of s, if that still is old or old is nil.
func (b *Blob) relocate(s *source, old, l *location) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case old != nil && b.locs[s] != old:
	case l == nil:
		delete(b.locs, s)
	default:
		b.locs[s] = l
	}
}

// expiry reads when a signed URL expires from its query; zero when it does not say in a way known here.
func expiry(q url.Values) time.Time {
	for _, p := range []string{"X-Amz-", "X-Goog-"} { // S3 and Google Cloud Storage, signature version 4
		begin, err := time.Parse("20060102T150405Z", q.Get(p+"Date"))
		seconds, err2 := strconv.ParseUint(q.Get(p+"Expires"), 10, 31)
		if errors.Join(err, err2) == nil {
			return begin.Add(time.Duration(seconds) * time.Second)
		}
	}
	if t, err := time.Parse(time.RFC3339, q.Get("se")); err == nil { // Azure
		return t
	}
	if unix, err := strconv.ParseUint(q.Get("Expires"), 10, 40); err == nil { // CloudFront, and S3 of old
		return time.Unix(int64(unix), 0)
	}
	return time.Time{}
}
