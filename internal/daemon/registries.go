package daemon

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/remote"
)

// registries hands out the client of all registries, a new one whenever config.json or the kept logins have changed. Images that are open keep
// the client they were opened with. It is safe for concurrent use.
type registries struct {
	path   string // of config.json
	logins *remote.Logins
	spans  *spans

	mu      sync.Mutex
	current *remote.Client
	parsed  *remote.Config // current's
	made    string         // stamp of the files that current was made of
	past    remote.Stats   // of clients that current has replaced
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
	now := stamp(r.path, r.logins.File)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil && r.made == now {
		return r.current, r.parsed, nil
	}
	config, err := remote.LoadConfig(r.path)
	if err != nil {
		return nil, nil, err
	}
	if r.current != nil {
		r.past = r.past.Add(r.current.Stats())
		r.current.CloseIdle() // what is open goes on with it
	}
	r.current = remote.NewClient(remote.Options{Config: config, Credentials: r.logins, Granted: r.spans.granted})
	r.parsed, r.made = config, now
	return r.current, config, nil
}

// stamp changes when one of the files does: config.json, or the credentials that login keeps, which a client remembers.
func stamp(paths ...string) string {
	var b strings.Builder
	for _, p := range paths {
		if fi, err := os.Stat(p); err == nil {
			fmt.Fprintf(&b, "%d %d,", fi.ModTime().UnixNano(), fi.Size())
		}
		b.WriteByte(';')
	}
	return b.String()
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

// silentFor is how long nothing comes before that is worth telling.
const silentFor = 5 * time.Second

// getWaiting tells which registries something is being waited for from that does not come.
func (d *daemon) getWaiting(w http.ResponseWriter, r *http.Request) error {
	out := []api.Wait{}
	for _, wait := range d.images.registries.waiting() {
		o := api.Wait{Host: wait.Host, Seconds: wait.Silent.Seconds()}
		if wait.Last != nil {
			o.Error = wait.Last.Error()
		}
		out = append(out, o)
	}
	return write(w, out)
}

func (r *registries) waiting() []remote.Wait {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		return nil
	}
	return r.current.Waiting(silentFor)
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
