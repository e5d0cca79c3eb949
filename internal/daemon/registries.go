package daemon

import (
	"os"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/remote"
)

// registries hands out the client of all registries, a new one whenever config.json has changed. Images that are open keep
// the client they were opened with. It is safe for concurrent use.
type registries struct {
	path   string // of config.json
	logins *remote.Logins

	mu      sync.Mutex
	current *remote.Client
	parsed  *remote.Config // current's
	changed time.Time      // config.json's mtime when current was made; zero when there was none
	size    int64
	past    remote.Stats // of clients that current has replaced
}

// client returns the client, and a as it understands it.
func (r *registries) client(a api.Access) (*remote.Client, remote.Access, error) {
	access := remote.Access{Insecure: a.Insecure, CACerts: a.CACerts, Username: a.Username, Password: a.Password, Platform: a.Platform, Env: a.Env}
	c, _, err := r.load()
	return c, access, err
}

// config returns what config.json says now.
func (r *registries) config() (*remote.Config, error) {
	_, config, err := r.load()
	return config, err
}

func (r *registries) load() (*remote.Client, *remote.Config, error) {
	var changed time.Time
	var size int64
	if fi, err := os.Stat(r.path); err == nil {
		changed, size = fi.ModTime(), fi.Size()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil && r.changed.Equal(changed) && r.size == size {
		return r.current, r.parsed, nil
	}
	config, err := remote.LoadConfig(r.path)
	if err != nil {
		return nil, nil, err
	}
	if r.current != nil {
		r.past = r.past.Add(r.current.Stats())
	}
	r.current = remote.NewClient(remote.Options{Config: config, Credentials: r.logins})
	r.parsed, r.changed, r.size = config, changed, size
	return r.current, config, nil
}

// stats are the counters of all clients there have been.
func (r *registries) stats() remote.Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		return r.past
	}
	return r.past.Add(r.current.Stats())
}

// close ends the current client. Those it has replaced hold nothing but idle connections.
func (r *registries) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		return nil
	}
	return r.current.Close()
}
