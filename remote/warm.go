package remote

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	// warmConns is how many connections are made ahead to a host that is about to be asked for several layers at once. With
	// TLS each would cost those who wait for it two or three round trips.
	warmConns = 6
	// warmFor is how long they are kept for somebody to use them. Servers drop connections that stay silent.
	warmFor = 5 * time.Second
	// warmAgain is how long after that a host is thought cold again, a little less than idle connections last.
	warmAgain = idleTimeout - 10*time.Second
)

// warmer makes connections ahead of their use, for one http.Transport. It never lends one twice.
type warmer struct {
	client *Client
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	tls    *tls.Config

	mu    sync.Mutex
	ready map[string][]*warmConn // by scheme and address
	since map[string]time.Time   // when a host was warmed last
}

// warmConn is a connection that is being made or waits for use.
type warmConn struct {
	done   chan struct{} // closed when made, or failed
	conn   net.Conn
	err    error
	cancel context.CancelFunc
}

// dialTCP is an http.Transport's DialContext.
func (w *warmer) dialTCP(ctx context.Context, network, addr string) (net.Conn, error) {
	return w.take(ctx, "http", addr, func() (net.Conn, error) { return w.dial(ctx, network, addr) })
}

// dialTLS is an http.Transport's DialTLSContext; it is not used for what goes through a proxy.
func (w *warmer) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	return w.take(ctx, "https", addr, func() (net.Conn, error) { return w.handshake(ctx, network, addr) })
}

func (w *warmer) handshake(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	raw, err := w.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	config := w.tls.Clone()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	config.ServerName = host
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// take hands out a connection made ahead, waiting for it if it is not there yet, or makes one.
func (w *warmer) take(ctx context.Context, scheme, addr string, dial func() (net.Conn, error)) (net.Conn, error) {
	key := scheme + " " + addr
	for {
		w.mu.Lock()
		if len(w.ready[key]) == 0 {
			w.mu.Unlock()
			return dial()
		}
		c := w.ready[key][0]
		w.mu.Unlock()
		select {
		case <-c.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if w.untake(key, c) && c.err == nil {
			c.cancel() // its maker need not wait any longer
			return c.conn, nil
		}
	}
}

// warm makes connections to u's host, unless some were made lately or a proxy is in between. It does not wait.
func (n *network) warm(u *url.URL) {
	w := n.warmer
	if via, err := n.Proxy(&http.Request{URL: u}); via != nil || err != nil {
		return
	}
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	key := u.Scheme + " " + addr
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if last, ok := w.since[key]; ok && now.Sub(last) < warmAgain {
		return
	}
	w.since[key] = now
	for range warmConns {
		c := &warmConn{done: make(chan struct{})}
		ctx, cancel := context.WithCancel(w.client.ctx)
		c.cancel = cancel
		if !w.client.start(func() { w.make(ctx, c, u.Scheme, addr) }) {
			cancel()
			return
		}
		w.ready[key] = append(w.ready[key], c)
	}
}

// make connects, and closes the connection again if nobody has taken it after a while.
func (w *warmer) make(ctx context.Context, c *warmConn, scheme, addr string) {
	defer c.cancel()
	if scheme == "https" {
		c.conn, c.err = w.handshake(ctx, "tcp", addr)
	} else {
		c.conn, c.err = w.dial(ctx, "tcp", addr)
	}
	close(c.done)
	if c.err == nil {
		sleepContext(ctx, warmFor)
	}
	if w.untake(scheme+" "+addr, c) && c.err == nil {
		c.conn.Close()
	}
}

// untake takes c off the list; false when somebody else has done so.
func (w *warmer) untake(key string, c *warmConn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(w.ready[key], c)
	if i < 0 {
		return false
	}
	w.ready[key] = slices.Delete(w.ready[key], i, i+1)
	return true
}
