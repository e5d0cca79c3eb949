package remote

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// Credentials is a place that may know how to log in to a registry.
type Credentials interface {
	// Get returns what to log in to host with; ok is false where it knows nothing. host is as people write it: docker.io.
	Get(ctx context.Context, host string) (c Credential, ok bool, err error)
}

// Credential is a user name and password, or an identity token, which a registry's token server exchanges. It prints
// without its secrets.
type Credential struct {
	Username      string
	Password      string
	IdentityToken string

	registryToken string // a bearer token as it is; only Docker's and podman's files have such
}

func (c Credential) config() authn.AuthConfig {
	return authn.AuthConfig{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.registryToken}
}

// String keeps secrets out of logs.
func (c Credential) String() string { return "credential of " + c.Username }

// GoString keeps secrets out of logs.
func (c Credential) GoString() string { return c.String() }

// credentialChain asks, in this order: the flags of the call, Options.Credentials (the keyring), config.json, Docker's and
// podman's files. It is run again whenever a registry refuses what it gave last.
func (c *Client) credentialChain(host string, cfg *Host, user, password string, env map[string]string) func(context.Context, string) (authn.AuthConfig, error) {
	return func(ctx context.Context, repo string) (authn.AuthConfig, error) {
		if user != "" || password != "" {
			return authn.AuthConfig{Username: user, Password: password}, nil
		}
		if store := c.options.Credentials; store != nil {
			got, ok, err := store.Get(ctx, displayHost(host))
			if err != nil {
				return authn.AuthConfig{}, fmt.Errorf("look up the credentials of %s: %w", displayHost(host), err)
			}
			if ok {
				return got.config(), nil
			}
		}
		if cfg.Auth != nil && !cfg.Auth.Keyring { // the keyring has been asked
			password, err := cfg.Auth.password(env)
			return authn.AuthConfig{Username: cfg.Auth.Username, Password: password}, err
		}
		got, _, err := fromAuthFiles(ctx, host, repo)
		if err != nil {
			return authn.AuthConfig{}, fmt.Errorf("look up the credentials of %s: %w", displayHost(host), err)
		}
		return got.config(), nil
	}
}

// password reads the password from where the configuration says, looking for variables in env first.
func (a *HostAuth) password(env map[string]string) (string, error) {
	if a.PasswordEnv != "" {
		if p, ok := env[a.PasswordEnv]; ok {
			return p, nil
		}
		if p, ok := os.LookupEnv(a.PasswordEnv); ok {
			return p, nil
		}
		return "", fmt.Errorf("%w: %s names the environment variable %s, which is not set", ErrUnauthorized, a.Where, a.PasswordEnv)
	}
	data, err := readLimited(a.SecretFile)
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrUnauthorized, a.Where, err)
	}
	return strings.TrimRight(string(data), "\r\n"), nil
}
