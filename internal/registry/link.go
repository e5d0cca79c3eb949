package registry

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Link is a network path: a bandwidth that all connections over it share, each way, and a round-trip time, half of
// which every byte takes each way. Latency delays, it does not serialise: bytes follow each other through the path, and
// connections go side by side. The handshake of TCP costs its round trip; slow start is not modelled.
type Link struct {
	rtt      time.Duration
	up, down bucket
	conns    atomic.Int64
}

// NewLink is a link of so many bytes per second (0 is no limit) and a round-trip time.
func NewLink(bytesPerSecond int64, rtt time.Duration) *Link {
	l := &Link{rtt: rtt}
	l.up.rate, l.down.rate = bytesPerSecond, bytesPerSecond
	return l
}

// LinkStats is what has gone over a link.
type LinkStats struct {
	Up, Down int64 // bytes, headers and TLS included
	Conns    int64 // connections made
	Busy     time.Duration
}

// Stats is what has gone over the link so far. Busy is how long the way down was in use, of a link with a limit.
func (l *Link) Stats() LinkStats {
	return LinkStats{Up: l.up.bytes.Load(), Down: l.down.bytes.Load(), Conns: l.conns.Load(), Busy: time.Duration(l.down.busy.Load())}
}

// bucket is one direction of a link: a queue that bytes leave at the link's rate.
type bucket struct {
	rate  int64 // bytes per second, 0 is no limit; immutable
	bytes atomic.Int64
	busy  atomic.Int64 // nanoseconds

	mu   sync.Mutex
	free time.Time // when everything that was taken so far has gone out
}

// queue is how far ahead of the wire a sender may run, as a router's queue lets it. A sender that finds the queue full
// waits with the lock held, so senders take turns. It also makes up for a sleep that ends late.
const queue = 2 * time.Millisecond

// take puts n bytes into the queue and returns when the last of them is out.
func (b *bucket) take(n int) time.Time {
	b.bytes.Add(int64(n))
	if b.rate == 0 {
		return time.Now()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if ahead := b.free.Sub(now); ahead > queue {
		time.Sleep(ahead - queue)
		now = time.Now()
	}
	if b.free.Before(now.Add(-queue)) {
		b.free = now.Add(-queue)
	}
	d := time.Duration(float64(n) / float64(b.rate) * float64(time.Second))
	b.busy.Add(int64(d))
	b.free = b.free.Add(d)
	return b.free
}

// piece is how many bytes go through the bucket at once: about a millisecond's worth.
func (b *bucket) piece() int {
	if b.rate == 0 {
		return 64 << 10
	}
	return int(min(64<<10, max(1<<10, b.rate/1000)))
}

// Proxy carries connections over a link to one address.
type Proxy struct {
	link   *Link
	ln     net.Listener
	target string
	wg     sync.WaitGroup
	bufs   sync.Pool

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// Serve carries what connects to ln over the link to the TCP address target, until the Proxy is closed. Proxies of one
// link share it.
func (l *Link) Serve(ln net.Listener, target string) *Proxy {
	p := &Proxy{link: l, ln: ln, target: target, conns: map[net.Conn]struct{}{}}
	size := max(l.up.piece(), l.down.piece())
	p.bufs.New = func() any { b := make([]byte, size); return &b }
	p.wg.Go(p.accept)
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Close refuses new connections, drops those there are, and waits for their ends.
func (p *Proxy) Close() error {
	err := p.ln.Close()
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

// hold makes Close end c; false when Close has been called.
func (p *Proxy) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) release(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *Proxy) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, perhaps
			continue
		}
		p.link.conns.Add(1)
		p.wg.Go(func() { p.carry(c) })
	}
}

// carry serves one connection.
func (p *Proxy) carry(client net.Conn) {
	start := time.Now()
	if !p.hold(client) {
		client.Close()
		return
	}
	defer p.release(client)
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	if !p.hold(server) {
		server.Close()
		return
	}
	defer p.release(server)
	// What the kernel buffers before the link would be counted as sent by the server long before it is.
	server.(*net.TCPConn).SetReadBuffer(256 << 10)
	var both sync.WaitGroup
	// The client's kernel believes to be connected at once; over the link it would be so one round trip later.
	both.Go(func() { p.pump(server, client, &p.link.up, start.Add(p.link.rtt)) })
	both.Go(func() { p.pump(client, server, &p.link.down, start) })
	both.Wait()
}

// flight is a piece on its way.
type flight struct {
	buf *[]byte
	n   int
	at  time.Time // when it arrives
	err error     // instead of a piece: how the source ended
}

// pump carries src's bytes to dst, none of them sent before earliest, until either ends.
func (p *Proxy) pump(dst, src net.Conn, b *bucket, earliest time.Time) {
	// Pieces on the wire: enough for 64 MB/s per ms of latency without a limit, for the bandwidth-delay product with one.
	wire := make(chan flight, 512)
	gone := make(chan struct{}) // dst takes no more
	var arrive sync.WaitGroup
	arrive.Go(func() {
		defer close(gone)
		if !p.arrive(dst, wire) {
			src.Close() // so that the sender learns of it
		}
	})
	half := p.link.rtt / 2
	for {
		buf := p.bufs.Get().(*[]byte)
		n, err := src.Read((*buf)[:b.piece()])
		f := flight{buf: buf, n: n, at: time.Now(), err: err}
		if n > 0 {
			f.at = b.take(n)
		}
		if f.at.Before(earliest) {
			f.at = earliest
		}
		f.at = f.at.Add(half)
		select {
		case wire <- f:
		case <-gone:
			err = io.EOF
		}
		if err != nil {
			break
		}
	}
	close(wire)
	arrive.Wait()
}

// arrive writes pieces to dst at their time, and ends dst as the source ended; false when dst takes no more.
func (p *Proxy) arrive(dst net.Conn, wire <-chan flight) bool {
	for f := range wire {
		// A shorter sleep than this is not worth its wake-up.
		if d := time.Until(f.at); d > 100*time.Microsecond {
			time.Sleep(d)
		}
		if f.n > 0 {
			if _, err := dst.Write((*f.buf)[:f.n]); err != nil {
				return false
			}
		}
		p.bufs.Put(f.buf)
		switch {
		case f.err == nil:
		case errors.Is(f.err, io.EOF):
			dst.(*net.TCPConn).CloseWrite()
		default:
			reset(dst)
			return false
		}
	}
	return true
}

// reset drops a connection by RST.
func reset(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}
