package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// installHelper puts a docker-credential-<name> first in PATH that keeps its secrets in a directory, one file per server.
func installHelper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if script == "" {
		script = `
read -r first
case $1 in
store) url=$(printf %s "$first" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/'); printf %s "$first" > "$STORE/$(printf %s "$url" | tr / _)";;
get) f="$STORE/$(printf %s "$first" | tr / _)"; if [ -f "$f" ]; then cat "$f"; else echo "credentials not found in native keychain"; exit 1; fi;;
erase) rm -f "$STORE/$(printf %s "$first" | tr / _)";;
list) printf '{'; sep=; for f in "$STORE"/*; do [ -f "$f" ] || continue; printf '%s"%s":"u"' "$sep" "$(basename "$f" | tr _ /)"; sep=,; done; printf '}';;
esac`
	}
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("STORE", t.TempDir())
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestLogins(t *testing.T) {
	ctx := context.Background()
	for _, keyring := range []bool{true, false} {
		t.Run(fmt.Sprintf("keyring %t", keyring), func(t *testing.T) {
			l := &Logins{Keyring: "msbtest", File: filepath.Join(t.TempDir(), "new", "auth.json")}
			if keyring {
				installHelper(t, "msbtest", "")
			}
			for host, c := range map[string]Credential{
				"docker.io": {Username: "u", Password: "hub"}, "r.example.com:5000": {Username: "u", Password: "p:w"}, "id.example.com": {IdentityToken: "tok"},
			} {
				if _, ok, err := l.Get(ctx, host); ok || err != nil {
					t.Errorf("%s is there before: %v", host, err)
				}
				where, err := l.Put(ctx, host, c)
				if err != nil || (where == "the keyring") != keyring {
					t.Errorf("stored in %q, %v", where, err)
				}
				if got, ok, err := l.Get(ctx, host); !ok || err != nil || got.Username != c.Username || got.Password != c.Password || got.IdentityToken != c.IdentityToken {
					t.Errorf("%s: got %#v %t, %v", host, got, ok, err)
				}
			}
			if got, ok, err := l.Get(ctx, "index.docker.io"); !ok || got.Password != "hub" {
				t.Errorf("Docker Hub by its other name: %t, %v", ok, err)
			}
			if users, err := l.List(ctx); err != nil || len(users) != 3 || users["docker.io"] != "u" {
				t.Errorf("List: %v, %v", users, err)
			}
			if fi, err := os.Stat(l.File); !keyring && (err != nil || fi.Mode().Perm() != 0o600) {
				t.Errorf("file: %v, %v", fi, err)
			}
			if known, err := l.Erase(ctx, "docker.io"); !known || err != nil {
				t.Errorf("Erase: %t, %v", known, err)
			}
			if known, err := l.Erase(ctx, "docker.io"); known || err != nil {
				t.Errorf("Erase again: %t, %v", known, err)
			}
			if _, ok, _ := l.Get(ctx, "docker.io"); ok {
				t.Error("still there after Erase")
			}
		})
	}
}

// A helper that fails or hangs must not keep public images from being pulled, and what it says is not shown.
func TestBrokenKeyring(t *testing.T) {
	installHelper(t, "msbtest", `echo "password is hunter2"; echo hunter2 >&2; exit 1`)
	l := &Logins{Keyring: "msbtest"}
	if _, ok, err := l.Get(context.Background(), "a.io"); ok || err != nil {
		t.Errorf("got %t, %v", ok, err)
	}
	if _, err := (&Logins{Keyring: "msbtest"}).Put(context.Background(), "a.io", Credential{Username: "u", Password: "p"}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
	if _, _, err := (&helper{name: "../evil"}).get(context.Background(), "a.io"); err == nil {
		t.Error("ran a program outside of PATH")
	}
}

func TestAuthFiles(t *testing.T) {
	installHelper(t, "msbtest", `read -r url; printf '{"ServerURL":"%s","Username":"<token>","Secret":"from helper"}' "$url"`)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	for _, tt := range []struct {
		name, text, host string
		want             Credential
		ok               bool
		err              string
	}{
		{"auth", `{"auths":{"a.io":{"auth":"dTpwOnc="}}}`, "a.io", Credential{Username: "u", Password: "p:w"}, true, ""},
		{"unpadded", `{"auths":{"a.io":{"auth":"dTpwOnc"}}}`, "a.io", Credential{Username: "u", Password: "p:w"}, true, ""},
		{"hub", `{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnc="}}}`, hubHost, Credential{Username: "u", Password: "p:w"}, true, ""},
		{"URL", `{"auths":{"https://a.io/v2/":{"username":"u","password":"p"}}}`, "a.io", Credential{Username: "u", Password: "p"}, true, ""},
		{"identity token", `{"auths":{"a.io":{"auth":"dTo=","identitytoken":"t"}}}`, "a.io", Credential{Username: "u", IdentityToken: "t"}, true, ""},
		{"other", `{"auths":{"b.io":{"auth":"dTpwOnc="}}}`, "a.io", Credential{}, false, ""},
		{"port counts", `{"auths":{"a.io:5000":{"auth":"dTpwOnc="}}}`, "a.io", Credential{}, false, ""},
		{"namespace", `{"auths":{"a.io/ns":{"auth":"dTpwOnc="}}}`, "a.io", Credential{Username: "u", Password: "p:w"}, true, ""},
		{"other namespace", `{"auths":{"a.io/n":{"auth":"dTpwOnc="}}}`, "a.io", Credential{}, false, ""},
		{"longest", `{"auths":{"a.io":{"username":"1"},"a.io/ns/team":{"username":"3"},"a.io/ns":{"username":"2"},"a.io/ns/team/application":{"username":"4"}}}`,
			"a.io", Credential{Username: "3"}, true, ""},
		{"repository", `{"auths":{"a.io/ns/team/app":{"username":"4"},"a.io/ns/team":{"username":"3"}}}`, "a.io", Credential{Username: "4"}, true, ""},
		{"host where namespace is another's", `{"auths":{"a.io":{"username":"1"},"a.io/x":{"username":"2"}}}`, "a.io", Credential{Username: "1"}, true, ""},
		{"helper of host", `{"credHelpers":{"a.io":"msbtest"}}`, "a.io", Credential{IdentityToken: "from helper"}, true, ""},
		{"helper of other", `{"credHelpers":{"b.io":"msbtest"}}`, "a.io", Credential{}, false, ""},
		{"helper missing", `{"credHelpers":{"a.io":"msbnone"}}`, "a.io", Credential{}, false, "docker-credential-msbnone"},
		{"store", `{"auths":{"a.io":{}},"credsStore":"msbtest"}`, "a.io", Credential{IdentityToken: "from helper"}, true, ""},
		{"store missing", `{"credsStore":"msbnone"}`, "a.io", Credential{}, false, ""},
		{"not base64", `{"auths":{"a.io":{"auth":"hunter2!"}}}`, "a.io", Credential{}, false, "base64"},
		{"not JSON", `{"auths":`, "a.io", Credential{}, false, "not a Docker configuration"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			os.WriteFile(filepath.Join(dir, "config.json"), []byte(tt.text), 0o600)
			got, ok, err := fromAuthFiles(context.Background(), tt.host, "ns/team/app")
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || ok != tt.ok || got != tt.want {
				t.Errorf("got %#v %t, %v", got.config(), ok, err)
			}
		})
	}
}

func TestLogin(t *testing.T) {
	checkLeaks(t)
	r := newTokenRegistry(t)
	r.password.Store("right")
	c := r.client(t, Options{})
	r.put("/v2/", "", []byte("{}"))
	if err := c.Login(context.Background(), r.host(), Access{Username: "u", Password: "right"}); err != nil {
		t.Error(err)
	}
	err := c.Login(context.Background(), r.host(), Access{Username: "u", Password: "hunter2"})
	if !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "check the user name") {
		t.Errorf("got %v", err)
	}
}

func TestCredentialDoesNotPrint(t *testing.T) {
	c := Credential{Username: "u", Password: "hunter2", IdentityToken: "hunter2"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, c); strings.Contains(s, "hunter2") {
			t.Errorf("%s prints %s", format, s)
		}
	}
}
