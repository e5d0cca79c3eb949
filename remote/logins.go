package remote

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// Logins is where msb-fs login keeps credentials: the desktop's keyring (Secret Service), by way of
// docker-credential-secretservice, or, on a machine without one, a file only its owner can read. It is safe for concurrent
// use. The zero value keeps nothing.
type Logins struct {
	// Keyring is the docker-credential-<Keyring> helper; "" means none. DefaultKeyring is the usual one.
	Keyring string
	// File is used where the keyring does not work, in the format of Docker's config.json; "" means none.
	File string

	mu   sync.Mutex
	down time.Time // the keyring did not work; not asked again before
}

var _ Credentials = (*Logins)(nil)

// DefaultKeyring is the helper for the Secret Service of GNOME, KDE and others.
const DefaultKeyring = "secretservice"

// keyringRest is for how long a keyring that does not work is left alone: asking it may take seconds.
const keyringRest = time.Minute

// keyring returns the helper if it is worth asking.
func (l *Logins) keyring() *helper {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Keyring == "" || time.Now().Before(l.down) {
		return nil
	}
	return &helper{name: l.Keyring}
}

func (l *Logins) keyringFailed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = time.Now().Add(keyringRest)
}

// Get looks a host up in the keyring, then in the file. A keyring that does not work is not an error: most servers have none.
func (l *Logins) Get(ctx context.Context, host string) (Credential, bool, error) {
	if h := l.keyring(); h != nil {
		c, ok, err := h.get(ctx, host)
		if ok {
			return c, true, nil
		}
		if err != nil && ctx.Err() == nil {
			l.keyringFailed()
		}
	}
	f, err := l.read()
	if err != nil {
		return Credential{}, false, err
	}
	return f.get(ctx, host, "")
}

// Put keeps a credential and says where.
func (l *Logins) Put(ctx context.Context, host string, c Credential) (where string, err error) {
	host = displayHost(canonicalHost(host))
	if h := l.keyring(); h != nil {
		if err = h.store(ctx, host, c); err == nil {
			return "the keyring", nil
		}
	}
	if l.File == "" {
		return "", errors.Join(errors.New("there is no place to keep the login"), err)
	}
	err = l.change(func(f *authFile) {
		f.Auths[host] = authEntry{Auth: base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password)), IdentityToken: c.IdentityToken}
	})
	return l.File, err
}

// Erase forgets a host everywhere; known says whether there was anything to forget.
func (l *Logins) Erase(ctx context.Context, host string) (known bool, err error) {
	host = displayHost(canonicalHost(host))
	if h := l.keyring(); h != nil {
		if _, ok, err := h.get(ctx, host); err == nil && ok {
			if err := h.erase(ctx, host); err != nil {
				return true, err
			}
			known = true
		}
	}
	f, err := l.read()
	if err != nil {
		return known, err
	}
	if _, ok := f.Auths[host]; ok {
		return true, l.change(func(f *authFile) { delete(f.Auths, host) })
	}
	return known, nil
}

// List returns the user name by host.
func (l *Logins) List(ctx context.Context) (map[string]string, error) {
	users := map[string]string{}
	f, err := l.read()
	if err != nil {
		return nil, err
	}
	for host, e := range f.Auths {
		c, err := e.credential()
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", l.File, oneLine(host), err)
		}
		users[host] = c.Username
	}
	if h := l.keyring(); h != nil {
		inKeyring, err := h.list(ctx)
		if err != nil {
			l.keyringFailed()
		}
		for key, user := range inKeyring {
			if host := authKeyHost(key); host != "" { // a keyring holds other programs' secrets too
				users[displayHost(host)] = user
			}
		}
	}
	return users, nil
}

func (l *Logins) read() (*authFile, error) {
	f := &authFile{}
	if l.File != "" {
		var err error
		if f, err = readAuthFile(l.File); errors.Is(err, fs.ErrNotExist) {
			f = &authFile{}
		} else if err != nil {
			return nil, err
		}
	}
	if f.Auths == nil {
		f.Auths = map[string]authEntry{}
	}
	f.CredHelpers, f.CredsStore = nil, "" // it is ours, and has no such things
	return f, nil
}

// change rewrites the file whole, so that it is never half written nor readable for others.
func (l *Logins) change(edit func(*authFile)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := l.read()
	if err != nil {
		return err
	}
	edit(f)
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.File), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(l.File), ".login-*") // CreateTemp makes it 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), l.File)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// Login tries the user name and password of a on a registry. It keeps nothing: that is Logins.Put's.
func (c *Client) Login(ctx context.Context, host string, a Access) error {
	host = canonicalHost(host)
	fail := func(err error) error {
		return &Error{Op: "log in to", Ref: displayHost(host), Kind: kindOf(err), Cause: trimKind(err), Hint: loginHint(err, host)}
	}
	e, err := c.endpoint(host, "", a, true)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	resp, err := e.do(ctx, request{path: "/v2/", count: &c.stats, class: priority.OnDemand})
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode != http.StatusOK {
		return fail(failure(resp, c.now()))
	}
	discard(resp)
	return nil
}

func loginHint(err error, host string) string {
	if kindOf(err) == ErrUnauthorized {
		return "check the user name and the password"
	}
	return hint(err, host)
}
