package remote

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Config is the part of config.json that concerns registries. The zero value is an absent file: no extra roots, no
// hosts.
//
// The keys are microsandbox's:
//
//	registries.ca_certs                          PEM file, added to the system's roots for every registry
//	registries.hosts.<host[:port]>.insecure      plain HTTP
//	registries.hosts.<host[:port]>.auth.username with exactly one of
//	                              .auth.password_env   name of an environment variable
//	                              .auth.store          "keyring"
//	                              .auth.secret_name    file secrets/registries/<secret_name> beside config.json
//
// and these are ours:
//
//	registries.hosts.<host[:port]>.ca_certs      PEM file, added for this host
//	                              .client_cert, .client_key   PEM files of a client certificate
//	                              .mirrors       tried in order before the host: "host[:port]" or "http[s]://host[:port][/prefix]"
//	                              .skip_verify   accept any server certificate
//	registries.stall_timeout                     how long a read waits while no byte comes: "90s", "0" = for ever
//	cache.max_bytes                              bytes as a number, or "20GB", "512MiB"
//	cache.background                             when the rest of an image in use comes: "auto", "eager" or "off"
//	index.push_to, index.pull_from               lists of repositories for indexes of layers
//
// Relative paths are relative to the directory of config.json. The sections microsandbox has beside registries (home, log_level,
// database, paths, sandbox_defaults, metrics) are let through unread.
type Config struct {
	Path    string           // of the file, for messages; "" when there is none
	CACerts []byte           // PEM
	Hosts   map[string]*Host // by host[:port]; Docker Hub is index.docker.io

	StallTimeout  time.Duration // as Options.StallTimeout, which goes before it: 0 = not set, negative = for ever
	CacheMaxBytes int64         // 0 = not set
	Background    string        // "auto", "eager" or "off"; "" = not set
	IndexPushTo   []string      // repositories
	IndexPullFrom []string      // repositories
}

// Host is what config.json says about one registry.
type Host struct {
	Insecure   bool
	SkipVerify bool
	CACerts    []byte            // PEM
	ClientCert []tls.Certificate // none or one
	Mirrors    []string          // checked URLs or host[:port]
	Auth       *HostAuth         // nil: none given
}

// HostAuth says where a registry's password is. Exactly one of PasswordEnv, SecretFile and Keyring is set.
type HostAuth struct {
	Where       string // file, line and key of the password's source, for messages
	Username    string
	PasswordEnv string
	SecretFile  string
	Keyring     bool
}

// PasswordEnvs lists the environment variables that password_env keys name, sorted: what a client has to send to a
// daemon whose environment is not the user's.
func (c *Config) PasswordEnvs() []string {
	var names []string
	for _, h := range c.Hosts {
		if h.Auth != nil && h.Auth.PasswordEnv != "" {
			names = append(names, h.Auth.PasswordEnv)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// maxConfigSize bounds config.json and the PEM files it names.
const maxConfigSize = 4 << 20

// LoadConfig reads config.json strictly. An absent file is an empty Config. Errors name the file, the line and the key.
func LoadConfig(path string) (*Config, error) {
	data, err := readLimited(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Config{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	p := &configParser{file: path, data: data, readFile: readLimited}
	c, err := p.parse()
	if err != nil {
		line := 1
		var at *lineError
		if errors.As(err, &at) {
			line = lineOf(data, at.offset)
		}
		return nil, fmt.Errorf("%s:%d: %w", path, line, err)
	}
	c.Path = path
	return c, nil
}

func readLimited(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxConfigSize {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, maxConfigSize)
	}
	return os.ReadFile(path)
}

// configParser turns the document into a Config. Its fields are what it needs of the world.
type configParser struct {
	file     string
	data     []byte // of file
	readFile func(string) ([]byte, error)
}

// where says where n stands.
func (p *configParser) where(n *jsonNode, key string) string {
	return fmt.Sprintf("%s:%d: %s", p.file, lineOf(p.data, n.offset), key)
}

func (p *configParser) parse() (*Config, error) {
	root, err := parseJSON(p.data)
	if err != nil {
		return nil, err
	}
	c := &Config{Hosts: map[string]*Host{}}
	ignore := func(*jsonNode, string) error { return nil }
	err = object(root, "", map[string]field{
		"home": ignore, "log_level": ignore, "database": ignore, "paths": ignore, "sandbox_defaults": ignore, "metrics": ignore,
		"registries": func(n *jsonNode, key string) error {
			return object(n, key, map[string]field{
				"ca_certs":      func(n *jsonNode, key string) (err error) { c.CACerts, err = p.certs(n, key); return },
				"hosts":         func(n *jsonNode, key string) error { return p.hosts(c, n, key) },
				"stall_timeout": func(n *jsonNode, key string) (err error) { c.StallTimeout, err = stallTimeout(n, key); return },
			})
		},
		"cache": func(n *jsonNode, key string) error {
			return object(n, key, map[string]field{
				"max_bytes": func(n *jsonNode, key string) (err error) { c.CacheMaxBytes, err = byteSize(n, key); return },
				"background": func(n *jsonNode, key string) (err error) {
					c.Background, err = oneOf(n, key, "auto", "eager", "off")
					return
				},
			})
		},
		"index": func(n *jsonNode, key string) error {
			return object(n, key, map[string]field{
				"push_to":   func(n *jsonNode, key string) (err error) { c.IndexPushTo, err = repositories(n, key); return },
				"pull_from": func(n *jsonNode, key string) (err error) { c.IndexPullFrom, err = repositories(n, key); return },
			})
		},
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (p *configParser) hosts(c *Config, n *jsonNode, key string) error {
	members, err := members(n, key)
	if err != nil {
		return err
	}
	for _, m := range members {
		k := key + "." + m.key
		if !validHost(m.key) {
			return complain(m.node, k, "is not host[:port]; leave out https:// and any path")
		}
		h, err := p.host(m.node, k)
		if err != nil {
			return err
		}
		host := canonicalHost(m.key)
		if c.Hosts[host] != nil {
			return complain(m.node, k, "is another name of a host that is already there")
		}
		c.Hosts[host] = h
	}
	return nil
}

func (p *configParser) host(n *jsonNode, key string) (*Host, error) {
	h := &Host{}
	var cert, certKey string
	err := object(n, key, map[string]field{
		"insecure":    func(n *jsonNode, key string) (err error) { h.Insecure, err = boolean(n, key); return },
		"skip_verify": func(n *jsonNode, key string) (err error) { h.SkipVerify, err = boolean(n, key); return },
		"ca_certs":    func(n *jsonNode, key string) (err error) { h.CACerts, err = p.certs(n, key); return },
		"client_cert": func(n *jsonNode, key string) (err error) { cert, err = text(n, key); return },
		"client_key":  func(n *jsonNode, key string) (err error) { certKey, err = text(n, key); return },
		"mirrors":     func(n *jsonNode, key string) (err error) { h.Mirrors, err = mirrors(n, key); return },
		"auth":        func(n *jsonNode, key string) (err error) { h.Auth, err = p.auth(n, key); return },
	})
	if err != nil {
		return nil, err
	}
	switch {
	case cert == "" && certKey == "":
		return h, nil
	case cert == "" || certKey == "":
		return nil, complain(n, key, "client_cert and client_key go together")
	}
	certPEM, err := p.readFile(p.path(cert))
	if err != nil {
		return nil, complain(n, key+".client_cert", err.Error())
	}
	keyPEM, err := p.readFile(p.path(certKey))
	if err != nil {
		return nil, complain(n, key+".client_key", err.Error())
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, complain(n, key+".client_cert", err.Error())
	}
	h.ClientCert = []tls.Certificate{pair}
	return h, nil
}

func (p *configParser) auth(n *jsonNode, key string) (*HostAuth, error) {
	a := &HostAuth{}
	var sources []string
	err := object(n, key, map[string]field{
		"username": func(n *jsonNode, key string) (err error) { a.Username, err = text(n, key); return },
		"password_env": func(n *jsonNode, key string) (err error) {
			sources = append(sources, "password_env")
			if a.PasswordEnv, err = text(n, key); err != nil {
				return err
			}
			a.Where = p.where(n, key)
			return nil
		},
		"store": func(n *jsonNode, key string) error {
			sources = append(sources, "store")
			s, err := text(n, key)
			if err == nil && s != "keyring" {
				err = complain(n, key, fmt.Sprintf("is %q; the only store is \"keyring\"", s))
			}
			a.Keyring = true
			return err
		},
		"secret_name": func(n *jsonNode, key string) error {
			sources = append(sources, "secret_name")
			s, err := text(n, key)
			if err == nil && (s == "." || s == ".." || strings.ContainsAny(s, "/\x00")) {
				err = complain(n, key, fmt.Sprintf("is %q; it is the name of a file in secrets/registries", s))
			}
			a.SecretFile = p.path(filepath.Join("secrets", "registries", s))
			a.Where = p.where(n, key)
			return err
		},
	})
	switch {
	case err != nil:
		return nil, err
	case a.Username == "":
		return nil, complain(n, key, "has no username")
	case len(sources) != 1:
		what := "has no password source"
		if len(sources) > 1 {
			what = "has more than one password source (" + strings.Join(sources, ", ") + ")"
		}
		return nil, complain(n, key, what+"; give exactly one of password_env, store, secret_name")
	}
	return a, nil
}

// certs reads the PEM file a key names.
func (p *configParser) certs(n *jsonNode, key string) ([]byte, error) {
	s, err := text(n, key)
	if err != nil {
		return nil, err
	}
	pem, err := p.readFile(p.path(s))
	if err != nil {
		return nil, complain(n, key, err.Error())
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return nil, complain(n, key, s+" holds no PEM certificate")
	}
	return pem, nil
}

func (p *configParser) path(s string) string {
	if filepath.IsAbs(s) {
		return s
	}
	return filepath.Join(filepath.Dir(p.file), s)
}
