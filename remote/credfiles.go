package remote

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// hubKey is what Docker's files and helpers call Docker Hub.
const hubKey = "https://index.docker.io/v1/"

// authFiles are the files where Docker and podman keep logins, in the order they count. Docker's comes first.
// https://docs.docker.com/reference/cli/docker/login/, containers-auth.json(5)
func authFiles() []string {
	home, _ := os.UserHomeDir()
	var files []string
	switch {
	case os.Getenv("DOCKER_CONFIG") != "":
		files = append(files, filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"))
	case home != "":
		files = append(files, filepath.Join(home, ".docker", "config.json"))
	}
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		return append(files, f)
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	}
	switch {
	case os.Getenv("XDG_CONFIG_HOME") != "":
		files = append(files, filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "containers", "auth.json"))
	case home != "":
		files = append(files, filepath.Join(home, ".config", "containers", "auth.json"))
	}
	return files
}

// authFile is the format Docker and podman share.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredHelpers map[string]string    `json:"credHelpers,omitempty"`
	CredsStore  string               `json:"credsStore,omitempty"`
}

type authEntry struct {
	Auth          string `json:"auth,omitempty"` // base64 of user:password
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

func readAuthFile(path string) (*authFile, error) {
	data, err := readLimited(path)
	if err != nil {
		return nil, err
	}
	var f authFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s is not a Docker configuration: %s", path, oneLine(err.Error()))
	}
	return &f, nil
}

// fromAuthFiles looks a repository of a host up in Docker's and podman's files. A file that is absent or not readable for this user is
// passed over; a broken one is an error, because the user meant something by it.
func fromAuthFiles(ctx context.Context, host, repo string) (Credential, bool, error) {
	for _, path := range authFiles() {
		f, err := readAuthFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return Credential{}, false, err
		}
		c, ok, err := f.get(ctx, host, repo)
		if err != nil {
			return Credential{}, false, fmt.Errorf("%s: %w", path, err)
		}
		if ok {
			return c, true, nil
		}
	}
	return Credential{}, false, nil
}

// get looks a host up: in a helper for it, in the file itself, in the helper for everything. Of the file's entries the one
// for the longest part of repo counts.
func (f *authFile) get(ctx context.Context, host, repo string) (Credential, bool, error) {
	for key, name := range f.CredHelpers {
		if authKeyHost(key) == canonicalHost(host) {
			c, ok, err := (&helper{name: name}).get(ctx, host)
			if ok || err != nil {
				return c, ok, err
			}
		}
	}
	if key, e := f.entry(canonicalHost(host), repo); key != "" {
		c, err := e.credential()
		if err != nil {
			return Credential{}, false, fmt.Errorf("auths.%s: %w", oneLine(key), err)
		}
		return c, true, nil
	}
	if f.CredsStore != "" {
		c, ok, err := (&helper{name: f.CredsStore}).get(ctx, host)
		if err != nil {
			// It speaks for every host: one that does not work must not keep public images from being pulled.
			return Credential{}, false, nil
		}
		return c, ok, nil
	}
	return Credential{}, false, nil
}

// entry finds the entry, and its key, that says most about a repository: podman's keys may be of a host, of a namespace or of one repository. With
// a helper for everything, Docker's entries are there but empty; such do not count.
func (f *authFile) entry(host, repo string) (found string, e authEntry) {
	longest := -1
	for _, key := range slices.Sorted(maps.Keys(f.Auths)) {
		keyHost, path := splitAuthKey(key)
		fits := keyHost == host && (path == "" || path == repo || strings.HasPrefix(repo, path+"/"))
		if fits && len(path) > longest && f.Auths[key] != (authEntry{}) {
			longest, found, e = len(path), key, f.Auths[key]
		}
	}
	return found, e
}

// authKeyHost is the host that a key of a file is about, "" if it is about a part of it only.
func authKeyHost(key string) string {
	host, path := splitAuthKey(key)
	if path != "" {
		return ""
	}
	return host
}

// splitAuthKey reads a key: a host, a host with a namespace or repository, or a URL as of the registry's first version.
func splitAuthKey(key string) (host, path string) {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ = strings.Cut(key, "/")
	if path = strings.Trim(path, "/"); path == "v1" || path == "v2" {
		path = ""
	}
	return canonicalHost(host), path
}

func (e authEntry) credential() (Credential, error) {
	c := Credential{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, registryToken: e.RegistryToken}
	if e.Auth == "" {
		return c, nil
	}
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(e.Auth))
	if err != nil {
		text, err = base64.RawStdEncoding.DecodeString(strings.TrimSpace(e.Auth))
	}
	user, password, ok := strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
	if err != nil || !ok {
		return Credential{}, errors.New("auth is not base64 of user:password") // without the value
	}
	c.Username, c.Password = user, password
	return c, nil
}
