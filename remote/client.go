package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"

	"github.com/google/go-containerregistry/pkg/name"
)

// Options configure a Client. The zero value works: no config file, anonymous or whatever Docker's and podman's files
// say, system roots.
type Options struct {
	Config *Config // as LoadConfig gives it; nil = empty

	// StallTimeout is how long a read goes on trying while not one byte arrives. 0 means what Config
	// says, and 60 s where it says nothing; negative means for ever.
	StallTimeout time.Duration
	// TempDir is where blobs of registries without Range support are spooled, in unlinked files. "" means os.TempDir().
	TempDir string
	// ConnsPerHost is the most requests for blobs at once to one registry; 0 means 24.
	ConnsPerHost int
	// BufferBytes bounds what all streams together read ahead of their readers; 0 means 32 MiB.
	BufferBytes int64

	// Granted is told of each range that may be asked for now: of which blob, from where, how many bytes and for how long it has waited for
	// its turn. It must not block; nil is nobody.
	Granted func(digest string, off, n int64, class priority.Class, waited time.Duration)

	// Credentials are asked, in order, before Docker's and podman's files. Login and Keyring make some.
	Credentials Credentials

	// Dial connects, for tests and tunnels; nil means a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Proxy chooses a proxy; nil means http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
}

// Access are the settings of one call, as flags give them. The zero value is what config.json says.
type Access struct {
	Insecure *bool  // plain HTTP; nil = as configured
	CACerts  []byte // PEM, added to the system's and config.json's roots
	Username string // with Password: used instead of any other credential
	Password string
	Platform string // os/arch[/variant]; "" = this host's, with os linux

	// Env are the caller's values of the variables that password_env keys name, where its environment is not this process's;
	// what is not in it is looked up in the environment.
	Env map[string]string
}

// Client talks to registries. It is safe for concurrent use. It is made by NewClient and ended by Close.
type Client struct {
	options Options
	config  *Config       // immutable
	stall   time.Duration // 0 = for ever
	now     func() time.Time
	sleep   func(context.Context, time.Duration) error

	ctx    context.Context // of everything that outlives one call; ended by Close
	cancel context.CancelFunc
	work   sync.WaitGroup
	stats  counter
	spare  sync.Pool // *[rangeSize]byte, buffers of flights that are over

	mu         sync.Mutex // guards what follows
	closed     bool
	endpoints  map[endpointKey]*endpoint
	hosts      map[string]*host
	transports map[transportKey]*network
	upstreams  map[upstreamKey]*upstream
	streams    int       // open Blob.Open readers
	kept       []*flight // read ahead, oldest first
	keptBytes  int64     // of them
}

type endpointKey struct {
	host, scheme, insecure, ca string
	user, password, secret     string // secret: of the configured source
}

// host is what is shared by everybody who talks to one registry host, with whatever credentials.
type host struct {
	name    string
	sched   *scheduler
	link    link
	breaker breaker

	redirects atomic.Bool // it has redirected a request for a blob
}

// NewClient makes a Client. It does no I/O.
func NewClient(o Options) *Client {
	c := &Client{
		options: o, config: o.Config, stall: o.StallTimeout,
		now: time.Now, sleep: sleepContext,
		endpoints: map[endpointKey]*endpoint{}, hosts: map[string]*host{},
		transports: map[transportKey]*network{}, upstreams: map[upstreamKey]*upstream{},
	}
	if c.config == nil {
		c.config = &Config{}
	}
	if c.stall == 0 {
		c.stall = c.config.StallTimeout
	}
	switch {
	case c.stall == 0:
		c.stall = 60 * time.Second
	case c.stall < 0:
		c.stall = 0
	}
	if c.options.ConnsPerHost <= 0 {
		c.options.ConnsPerHost = 24
	}
	if c.options.BufferBytes <= 0 {
		c.options.BufferBytes = 32 << 20
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close ends everything under way, waits for it, and closes idle connections. Reads fail with ErrClosed afterwards.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	c.CloseIdle()
	return nil
}

// CloseIdle closes the connections that nobody uses just now.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

// Stats counts everything this client has fetched.
func (c *Client) Stats() Stats { return c.stats.stats() }

// start runs f in a goroutine that Close waits for; false when the client is closed.
func (c *Client) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Go(f)
	return true
}

func (c *Client) hostConfig(host string) *Host {
	if h := c.config.Hosts[host]; h != nil {
		return h
	}
	return &Host{}
}

// host returns the shared state of a host; the caller holds c.mu.
func (c *Client) host(name string) *host {
	h := c.hosts[name]
	if h == nil {
		h = &host{name: name}
		h.sched = newScheduler(c.options.ConnsPerHost, h.link.lowBudget)
		c.hosts[name] = h
	}
	return h
}

// endpoint returns the endpoint of a registry host. scheme is "" or what a mirror's URL says.
func (c *Client) endpoint(hostName, scheme string, a Access, override bool) (*endpoint, error) {
	cfg := c.hostConfig(hostName)
	key := endpointKey{host: hostName, scheme: scheme, ca: digestKey(a.CACerts)}
	if override { // flags speak of the image's own registry, not of its mirrors
		key.user, key.password = a.Username, a.Password
		if a.Insecure != nil {
			key.insecure = map[bool]string{true: "yes", false: "no"}[*a.Insecure]
		}
	}
	if cfg.Auth != nil && !cfg.Auth.Keyring && key.user == "" && key.password == "" {
		// Asked for now, so that a variable that is not set is known before the registry refuses.
		secret, err := cfg.Auth.password(a.Env)
		if err != nil {
			return nil, err
		}
		key.secret = secret
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.endpoints[key]; e != nil {
		return e, nil
	}
	reg, err := name.NewRegistry(hostName, name.WeakValidation)
	if err != nil {
		return nil, err
	}
	t, err := c.transport(hostName, a.CACerts)
	if err != nil {
		return nil, err
	}
	e := &endpoint{client: c, host: c.host(hostName), reg: reg, transport: t, ca: a.CACerts}
	switch {
	case key.insecure == "yes", key.insecure == "" && scheme == "http", key.insecure == "" && scheme == "" && cfg.Insecure:
		e.setScheme("http")
	case key.insecure == "" && scheme == "" && isLoopback(hostName):
		// A registry on this machine often has no certificate. HTTPS is tried first.
	default:
		e.setScheme("https")
	}
	e.auth = &authorizer{endpoint: e, lock: make(chan struct{}, 1), basic: map[string]string{}, tokens: map[string]*token{}, scopes: map[string]string{}}
	e.auth.credentials = c.credentialChain(hostName, cfg, key.user, key.password, a.Env)
	c.endpoints[key] = e
	return e, nil
}

func isLoopback(hostport string) bool {
	h := hostport
	if s, _, err := net.SplitHostPort(hostport); err == nil {
		h = s
	}
	ip := net.ParseIP(trimBrackets(h))
	return h == "localhost" || ip != nil && ip.IsLoopback()
}

func trimBrackets(s string) string {
	if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}

func digestKey(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
