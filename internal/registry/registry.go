// Package registry is an OCI registry for tests, demonstrations and benchmarks: a real HTTP or HTTPS server on
// loopback with blobs in files, a link of chosen bandwidth and round-trip time in front of it, and faults to order.
//
//	s, err := registry.Start(registry.Options{})
//	defer s.Close()
//	s.AddImage("demo/app:1", img)                // or push to s.Host() with any client
//	client.Resolve(ctx, s.Host()+"/demo/app:1")  // plain HTTP unless Options.CA is set
//
// A link of 100 Mbit/s and 20 ms, shared by all connections:
//
//	registry.Start(registry.Options{Link: registry.NewLink(100e6/8, 20*time.Millisecond)})
//
// Credentials, expiring bearer tokens, blobs behind signed URLs on a second host:
//
//	registry.Options{Auth: registry.Auth{Username: "u", Password: "p", Bearer: true, TokenTTL: time.Minute}, ObjectStore: true, Now: clock}
//
// Faults are ordered by the operation they hit, may be stacked, and can be limited in number:
//
//	in := s.Inject(registry.Match{Op: registry.Blob, Ref: digest, Times: 3}, registry.Status(503))
//	s.Inject(registry.Match{Op: registry.Blob}, registry.Latency(time.Second), registry.FlipByte(4096))
//	in.Hits(); in.Remove()
//
// What was asked for is in s.Requests and s.Stats.
package registry

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// Options of a Server. The zero value is an anonymous registry over plain HTTP with an unlimited link.
type Options struct {
	Dir  string // where blobs are kept and left; "" is a temporary directory that Close removes
	Addr string // where to listen, "127.0.0.1:0" when ""
	Link *Link  // in front of the registry and its object store; nil is no limit

	Auth Auth
	// ObjectStore answers blob requests with a redirect to a signed URL on a second host (another port), as registries
	// before object storage do. An Authorization header that arrives there is answered 400 and counted.
	ObjectStore bool
	URLTTL      time.Duration // of signed URLs; 0 is an hour

	CA          *CA  // serves HTTPS with a certificate of this authority; nil is plain HTTP
	ClientCerts bool // with CA: asks for a client certificate of the same authority

	Now func() time.Time // the clock of tokens and signed URLs; nil is time.Now
}

// Server is a running registry. Its methods may be called concurrently.
type Server struct {
	o       Options
	tempDir string // removed by Close; "" when the caller named one
	blobs   *blobFiles
	inner   http.Handler // the distribution API itself
	auth    *authority
	faults  faults
	log     requestLog

	registry *endpoint
	objects  *endpoint // nil without Options.ObjectStore
	signKey  [32]byte

	mu     sync.Mutex
	down   chan struct{} // closed while the server is down: ends hanging handlers
	closed bool
	active int       // handlers at work
	idle   sync.Cond // active is 0
}

// Start listens and serves. The caller ends it with Close.
func Start(o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.URLTTL == 0 {
		o.URLTTL = time.Hour
	}
	s := &Server{o: o, auth: newAuthority(o.Auth, o.Now), signKey: randomKey()}
	s.idle.L = &s.mu
	dir := o.Dir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "msb-registry-"); err != nil {
			return nil, fmt.Errorf("make a directory for blobs: %w", err)
		}
		s.tempDir = dir
	}
	s.blobs = &blobFiles{dir: dir}
	s.inner = ggcr.New(ggcr.WithBlobHandler(s.blobs), ggcr.WithReferrersSupport(true), ggcr.Logger(discard()))

	s.registry = &endpoint{addr: o.Addr, handler: s.wrap(s.serveRegistry), link: o.Link, ca: o.CA, clientCerts: o.ClientCerts}
	if o.ObjectStore {
		s.objects = &endpoint{handler: s.wrap(s.serveObject), link: o.Link, ca: o.CA}
	}
	if err := s.Up(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Host is the registry's host:port as references name it. It stays the same through Down and Up.
func (s *Server) Host() string { return s.registry.addr }

// URL is the registry's base URL.
func (s *Server) URL() string { return s.scheme() + "://" + s.registry.addr }

// ObjectHost is the object store's host:port, "" without Options.ObjectStore.
func (s *Server) ObjectHost() string {
	if s.objects == nil {
		return ""
	}
	return s.objects.addr
}

func (s *Server) scheme() string {
	if s.o.CA != nil {
		return "https"
	}
	return "http"
}

// Down refuses connections from now on and drops those there are, as a host does that goes away.
func (s *Server) Down() {
	s.mu.Lock()
	if s.down != nil {
		select {
		case <-s.down:
		default:
			close(s.down)
		}
	}
	s.mu.Unlock()
	s.registry.stop()
	if s.objects != nil {
		s.objects.stop()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.active > 0 {
		s.idle.Wait()
	}
}

// Up serves again after Down, at the same addresses.
func (s *Server) Up() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("start registry: it was closed")
	}
	s.down = make(chan struct{})
	if err := s.registry.start(); err != nil {
		return err
	}
	if s.objects == nil {
		return nil
	}
	return s.objects.start()
}

// Close ends the server, its connections and its handlers, and removes the blobs unless Options.Dir named their place.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Down()
	if s.tempDir == "" {
		return nil
	}
	return os.RemoveAll(s.tempDir)
}

// enter and leave count the handlers at work.
func (s *Server) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active++
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active--; s.active == 0 {
		s.idle.Broadcast()
	}
}

// stopped is closed when the server goes down.
func (s *Server) stopped() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

// endpoint is one listening address with, perhaps, a link in front of it.
type endpoint struct {
	addr        string // fixed by the first start
	handler     http.Handler
	link        *Link
	ca          *CA
	clientCerts bool

	server *http.Server
	proxy  *Proxy
	served chan struct{} // closed when Serve has returned
}

func (e *endpoint) start() error {
	addr := e.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	outer, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	e.addr = outer.Addr().String()
	ln := outer
	if e.link != nil {
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			outer.Close()
			return fmt.Errorf("start registry: %w", err)
		}
		e.proxy = e.link.Serve(outer, ln.Addr().String())
	}
	e.server = &http.Server{Handler: e.handler, ErrorLog: discard()}
	if e.ca != nil {
		if e.server.TLSConfig, err = e.ca.serverConfig(e.clientCerts); err != nil {
			ln.Close()
			e.stop()
			return err
		}
	}
	e.served = make(chan struct{})
	go func(srv *http.Server, served chan struct{}) {
		defer close(served)
		if srv.TLSConfig != nil {
			srv.ServeTLS(ln, "", "")
			return
		}
		srv.Serve(ln)
	}(e.server, e.served)
	return nil
}

func (e *endpoint) stop() {
	if e.server != nil {
		e.server.Close()
	}
	if e.proxy != nil {
		e.proxy.Close()
		e.proxy = nil
	}
	if e.served != nil {
		<-e.served
		e.served = nil
	}
}

func discard() *log.Logger { return log.New(io.Discard, "", 0) }
