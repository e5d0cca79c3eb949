package msb

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
)

// Option is a setting of Create, Start, Pull or Mount. One that a function has no use for does nothing there.
type Option func(*settings) error

// settings are what Options add up to.
type settings struct {
	home     string
	spec     Spec
	registry Registry
	pull     PullPolicy
	upper    string
}

func settle(opts []Option) (s settings, h *Host, err error) {
	for _, o := range opts {
		if err := o(&s); err != nil {
			return s, nil, err
		}
	}
	h, err = Open(s.home)
	return s, h, err
}

func set(fn func(*settings)) Option {
	return func(s *settings) error {
		fn(s)
		return nil
	}
}

// WithHome is the home directory: "" is $MSB_HOME, else ~/.microsandbox.
func WithHome(dir string) Option { return set(func(s *settings) { s.home = dir }) }

// WithImage is the image that a sandbox is made of.
func WithImage(ref string) Option { return set(func(s *settings) { s.spec.Image = ref }) }

// WithPlatform chooses os/arch[/variant] of an image for several.
func WithPlatform(p string) Option { return set(func(s *settings) { s.spec.Platform = p }) }

// WithPullPolicy says when the registry is asked; PullIfMissing where it is not given.
func WithPullPolicy(p PullPolicy) Option { return set(func(s *settings) { s.pull = p }) }

// WithCommand replaces the image's CMD.
func WithCommand(args ...string) Option { return set(func(s *settings) { s.spec.Command.Args = args }) }

// WithEntrypoint replaces the image's ENTRYPOINT and drops its CMD.
func WithEntrypoint(path string) Option {
	return set(func(s *settings) { s.spec.Command.Entrypoint = &path })
}

// WithEnv adds K=V settings to the image's environment.
func WithEnv(kv ...string) Option {
	return func(s *settings) error {
		for _, e := range kv {
			if strings.IndexByte(e, '=') < 1 {
				return fmt.Errorf("environment %q is not of the form K=V", e)
			}
		}
		s.spec.Command.Env = append(s.spec.Command.Env, kv...)
		return nil
	}
}

// WithWorkdir is the command's working directory.
func WithWorkdir(dir string) Option { return set(func(s *settings) { s.spec.Command.Dir = dir }) }

// WithUser is the command's user[:group], names or numbers.
func WithUser(user string) Option { return set(func(s *settings) { s.spec.Command.User = user }) }

// WithCPUs is the number of virtual CPUs.
func WithCPUs(n int) Option { return set(func(s *settings) { s.spec.CPUs = n }) }

// WithMemory is the memory in MiB.
func WithMemory(mib int) Option { return set(func(s *settings) { s.spec.MemoryMiB = mib }) }

// WithNetwork is none, public or all; public where it is not given.
func WithNetwork(policy string) Option { return set(func(s *settings) { s.spec.Net = policy }) }

// WithPort publishes [BIND:]HOST:GUEST[/udp].
func WithPort(port string) Option {
	return set(func(s *settings) { s.spec.Ports = append(s.spec.Ports, port) })
}

// WithVolume shows a directory or a file of the host: SRC:DST[:ro].
func WithVolume(volume string) Option {
	return func(s *settings) error {
		v, err := ParseVolume(volume)
		s.spec.Volumes = append(s.spec.Volumes, v)
		return err
	}
}

// WithHostname is the sandbox's host name; its own name where it is not given.
func WithHostname(name string) Option { return set(func(s *settings) { s.spec.Hostname = name }) }

// WithTmpfs keeps a directory of the sandbox in its memory, of which it takes at most mib MiB, half if 0.
func WithTmpfs(path string, mib int) Option {
	return set(func(s *settings) { s.spec.Tmpfs = append(s.spec.Tmpfs, Tmpfs{path, mib}) })
}

// WithUpperSize bounds what the sandbox may write in all, in MiB.
func WithUpperSize(mib int) Option { return set(func(s *settings) { s.spec.UpperMiB = mib }) }

// WithTimeout kills the command after so long.
func WithTimeout(d time.Duration) Option { return set(func(s *settings) { s.spec.Timeout = d }) }

// WithEphemeral removes the sandbox when its command ends.
func WithEphemeral() Option { return set(func(s *settings) { s.spec.Ephemeral = true }) }

// WithAccel is auto, kvm or tcg; auto where it is not given.
func WithAccel(accel string) Option { return set(func(s *settings) { s.spec.Accel = accel }) }

// WithKernel is the guest kernel, an uncompressed vmlinux; the one that `msb-launch setup` got where it is not given.
func WithKernel(path string) Option { return set(func(s *settings) { s.spec.Kernel = path }) }

// WithUpper makes a mount writable and keeps changes in that directory.
func WithUpper(dir string) Option { return set(func(s *settings) { s.upper = dir }) }

// RegistryOption is a setting of WithRegistry.
type RegistryOption func(*Registry) error

// WithRegistry overrides config.json's registry settings for one call. They are never written down.
func WithRegistry(opts ...RegistryOption) Option {
	return func(s *settings) error {
		for _, o := range opts {
			if err := o(&s.registry); err != nil {
				return err
			}
		}
		return nil
	}
}

// BasicAuth logs in to the registry.
func BasicAuth(username, password string) RegistryOption {
	return func(r *Registry) error {
		r.Username, r.Password = username, password
		return nil
	}
}

// CACerts trusts the certificates in a PEM file beside the system's.
func CACerts(path string) RegistryOption {
	return func(r *Registry) (err error) {
		r.CACerts, err = os.ReadFile(path)
		return err
	}
}

// PlainHTTP speaks HTTP without TLS to the registry.
func PlainHTTP() RegistryOption {
	return func(r *Registry) error {
		yes := true
		r.Insecure = &yes
		return nil
	}
}

// Create makes a sandbox of that name, "" for one that is called by its id, and pins its image. It boots nothing.
func Create(ctx context.Context, name string, opts ...Option) (*Sandbox, error) {
	s, h, err := settle(opts)
	if err != nil {
		return nil, err
	}
	s.spec.Name = name
	return h.Create(ctx, s.spec, s.registry, s.pull)
}

// Get returns the sandbox of that name or id.
func Get(name string, opts ...Option) (*Sandbox, error) {
	_, h, err := settle(opts)
	if err != nil {
		return nil, err
	}
	return h.Get(name)
}

// List returns all sandboxes, sorted by name.
func List(opts ...Option) ([]*Sandbox, error) {
	_, h, err := settle(opts)
	if err != nil {
		return nil, err
	}
	return h.List()
}

// Pull brings an image into the cache and returns its manifest digest.
func Pull(ctx context.Context, image string, opts ...Option) (digest string, err error) {
	s, h, err := settle(opts)
	if err != nil {
		return "", err
	}
	client, err := h.connect(ctx)
	if err != nil {
		return "", err
	}
	defer client.Close()
	req := api.PullRequest{ImageRequest: s.registry.request(image, s.spec.Platform, s.pull)}
	err = client.Stream(ctx, "POST", "/v1/pull", req, func(e api.Event) error {
		if e.Image != nil {
			digest = e.Image.Digest
		}
		return nil
	})
	return digest, err
}

// Mount mounts an image on dir, which is absolute, and returns when it is usable, long before its bytes are local. It is read-only
// unless WithUpper is given. It outlives the caller, until Unmount.
func Mount(ctx context.Context, image, dir string, opts ...Option) error {
	s, h, err := settle(opts)
	if err != nil {
		return err
	}
	client, err := h.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	req := api.MountRequest{ImageRequest: s.registry.request(image, s.spec.Platform, s.pull), Dir: dir, Upper: s.upper}
	return client.Stream(ctx, "POST", "/v1/mounts", req, func(api.Event) error { return nil })
}

// Unmount unmounts what Mount has mounted on dir.
func Unmount(ctx context.Context, dir string, opts ...Option) error {
	_, h, err := settle(opts)
	if err != nil {
		return err
	}
	client, err := h.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Call(ctx, "DELETE", "/v1/mounts?"+url.Values{"dir": {dir}}.Encode(), nil, nil)
}
