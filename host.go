package msb

import (
	"context"
	"maps"

	"github.com/microsandbox/msb-fs/internal/api"
)

// Host is a home directory on this machine, with its cache and sandboxes. It is safe for concurrent use.
type Host struct {
	// Waiting, if not nil, is told now and then, in a line for people, which registries keep a sandbox from being made or from starting. It
	// is set before anything else is done.
	Waiting func(note string)

	home       api.Home
	daemonArgs []string
}

// Open returns the host of that home directory: dir, else $MSB_HOME, else ~/.microsandbox. It does no I/O. daemonArgs are
// further arguments of the daemon, should it have to be started.
func Open(dir string, daemonArgs ...string) (*Host, error) {
	home, err := api.FindHome(dir)
	return &Host{home: home, daemonArgs: daemonArgs}, err
}

func (h *Host) connect(ctx context.Context) (*api.Client, error) {
	return api.Connect(ctx, h.home, h.daemonArgs...)
}

// watch tells h.Waiting, until stop is called, what the daemon waits for.
func (h *Host) watch(ctx context.Context) (stop func()) {
	socket, err := h.home.Socket()
	if h.Waiting == nil || err != nil {
		return func() {}
	}
	client := api.Dial(socket)
	end := client.Watch(ctx, func(w api.Wait) { h.Waiting(w.String()) })
	return func() {
		end()
		client.Close()
	}
}

// Registry are registry settings that override config.json's for one call. They are never written down. The zero value
// overrides nothing.
type Registry struct {
	Insecure *bool  // plain HTTP
	CACerts  []byte // PEM, trusted beside the system's
	Username string
	Password string
	// Env are values of the variables that config.json takes passwords from, where they are not in the daemon's environment.
	Env map[string]string
}

// request is an ImageRequest with r's settings.
func (r Registry) request(image, platform string, pull PullPolicy) api.ImageRequest {
	return api.ImageRequest{Image: image, Pull: string(pull), Access: api.Access{Insecure: r.Insecure, CACerts: r.CACerts, Username: r.Username,
		Password: r.Password, Platform: platform, Env: maps.Clone(r.Env)}}
}
