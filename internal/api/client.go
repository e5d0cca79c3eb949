package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
)

// Client speaks to one daemon. It is safe for concurrent use.
type Client struct {
	// Waiting, if not nil, is told now and then which registries keep a request waiting. It is set before the first request.
	Waiting func(Wait)

	http http.Client
}

// Dial returns a client of the daemon that listens on socket. It does no I/O.
func Dial(socket string) *Client {
	var d net.Dialer
	return &Client{http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends a request; the caller closes the body of the answer, whose status is 2xx. Only what changes something, or may have to
// fetch, is worth watching.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	if method != http.MethodPost {
		return c.send(ctx, method, path, body)
	}
	stop := c.watch(ctx)
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		stop()
		return nil, err
	}
	resp.Body = watched{resp.Body, sync.OnceFunc(stop)}
	return resp, nil
}

func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://daemon"+path, r)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("talk to msb-fs daemon: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &Error{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(e); err != nil || e.Message == "" {
		return nil, fmt.Errorf("msb-fs daemon answered %s to %s %s", resp.Status, method, path)
	}
	return nil, e
}

// Call sends in as JSON and decodes the answer into out; either may be nil.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read msb-fs daemon's answer to %s %s: %w", method, path, err)
	}
	return nil
}

// Raw sends in as JSON and returns the answer's body, which the caller closes. trailer is valid once the body has been
// read to its end: it tells whether the daemon could send all of it.
func (c *Client) Raw(ctx context.Context, method, path string, in any) (body io.ReadCloser, trailer func() error, err error) {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return nil, nil, err
	}
	return resp.Body, func() error {
		if m := resp.Trailer.Get(ErrorTrailer); m != "" {
			return &Error{Message: m}
		}
		return nil
	}, nil
}

// ErrorTrailer is the HTTP trailer with the message of a failure that happened after the answer had begun.
const ErrorTrailer = "Msb-Error"

// Stream sends in as JSON and hands each Event of the answer to fn until the stream ends or fn fails. An Event of name
// EventError ends it with that error.
func (c *Client) Stream(ctx context.Context, method, path string, in any, fn func(Event) error) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("read msb-fs daemon's answer: %w", err)
		}
		if e.Error != nil {
			return e.Error
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("msb-fs daemon hung up: %w", err)
	}
	return nil
}
