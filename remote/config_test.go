package remote

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadConfig(t *testing.T) {
	ca := newTestCA(t)
	path := writeConfig(t, `{
  "home": "/x", "log_level": "info", "database": {"url": null}, "paths": {}, "sandbox_defaults": {"cpus": 2}, "metrics": {},
  "registries": {
    "ca_certs": "ca.pem",
    "hosts": {
      "docker.io": {"auth": {"username": "u", "password_env": "HUB"}, "mirrors": ["mirror.example.com", "http://10.0.0.1:5000/hub/"]},
      "ghcr.io": {"auth": {"username": "u", "store": "keyring"}},
      "quay.io": {"auth": {"username": "u", "secret_name": "quay"}},
      "localhost:5000": {"insecure": true, "auth": null},
      "r.example.com:443": {"ca_certs": "ca.pem", "client_cert": "c.pem", "client_key": "k.pem", "skip_verify": true}
    }
  }
}`)
	dir := filepath.Dir(path)
	cert, key := ca.issue(t, "client")
	for name, data := range map[string][]byte{"ca.pem": ca.pem, "c.pem": cert, "k.pem": key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	hub := c.Hosts[hubHost]
	if hub == nil || hub.Auth.PasswordEnv != "HUB" || !strings.Contains(hub.Auth.Where, "config.json:6: registries.hosts.docker.io.auth.password_env") || len(hub.Mirrors) != 2 {
		t.Errorf("docker.io: %+v", hub)
	}
	if !c.Hosts["ghcr.io"].Auth.Keyring || c.Hosts["quay.io"].Auth.SecretFile != filepath.Join(dir, "secrets/registries/quay") {
		t.Errorf("ghcr.io: %+v, quay.io: %+v", c.Hosts["ghcr.io"].Auth, c.Hosts["quay.io"].Auth)
	}
	if !c.Hosts["localhost:5000"].Insecure || len(c.CACerts) == 0 {
		t.Errorf("localhost: %+v", c.Hosts["localhost:5000"])
	}
	r := c.Hosts["r.example.com:443"]
	if len(r.ClientCert) != 1 || !r.SkipVerify || len(r.CACerts) == 0 {
		t.Errorf("r.example.com: %+v", r)
	}
	if got := c.PasswordEnvs(); !slices.Equal(got, []string{"HUB"}) {
		t.Errorf("PasswordEnvs: %q", got)
	}
}

func TestLoadConfigAbsent(t *testing.T) {
	c, err := LoadConfig(filepath.Join(t.TempDir(), "none.json"))
	if err != nil || c == nil || len(c.Hosts) != 0 {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestLoadConfigErrors(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"syntax", "{\n  \"registries\": {\n  \"hosts\" {}\n}}", "config.json:3:"},
		{"empty", "", "config.json:1:"},
		{"cut", "{\n\"registries\": {", "config.json:2: the document ends too early"},
		{"trailing", "{}\n{}", "config.json:2: more after the end"},
		{"unknown top", "{\n\n\"registry\": {}}", "config.json:3: registry is not a known key"},
		{"unknown in registries", "{\"registries\": {\n\"host\": {}}}", "config.json:2: registries.host is not a known key"},
		{"unknown in host", "{\"registries\": {\"hosts\":\n{\"a.io\":\n{\"insecur\": true}}}}", "config.json:3: registries.hosts.a.io.insecur is not a known key"},
		{"twice", "{\"registries\": {},\n\"registries\": {}}", "config.json:2: key \"registries\" is there twice"},
		{"two sources", "{\"registries\": {\"hosts\": {\"a.io\": {\n\"auth\": {\"username\": \"u\", \"password_env\": \"A\", \"store\": \"keyring\"}}}}}", "config.json:2: registries.hosts.a.io.auth has more than one password source (password_env, store)"},
		{"no source", "{\"registries\": {\"hosts\": {\"a.io\": {\n\"auth\": {\"username\": \"u\"}}}}}", "config.json:2: registries.hosts.a.io.auth has no password source"},
		{"no username", "{\"registries\": {\"hosts\": {\"a.io\": {\n\"auth\": {\"store\": \"keyring\"}}}}}", "config.json:2: registries.hosts.a.io.auth has no username"},
		{"password", "{\"registries\": {\"hosts\": {\"a.io\": {\"auth\": {\"username\": \"u\",\n\"password\": \"hunter2\"}}}}}", "config.json:2: registries.hosts.a.io.auth.password is not a known key"},
		{"store", "{\"registries\": {\"hosts\": {\"a.io\": {\"auth\": {\"username\": \"u\",\n\"store\": \"file\"}}}}}", "config.json:2: registries.hosts.a.io.auth.store is \"file\""},
		{"secret path", "{\"registries\": {\"hosts\": {\"a.io\": {\"auth\": {\"username\": \"u\",\n\"secret_name\": \"../x\"}}}}}", "config.json:2: registries.hosts.a.io.auth.secret_name"},
		{"missing PEM", "{\"registries\": {\n\n\"ca_certs\": \"/nowhere/ca.pem\"}}", "config.json:3: registries.ca_certs"},
		{"not PEM", "{\"registries\": {\n\"ca_certs\": \"config.json\"}}", "config.json:2: registries.ca_certs config.json holds no PEM certificate"},
		{"half a pair", "{\"registries\": {\"hosts\": {\n\"a.io\": {\"client_cert\": \"x\"}}}}", "config.json:2: registries.hosts.a.io client_cert and client_key go together"},
		{"host with scheme", "{\"registries\": {\"hosts\": {\n\"https://a.io\": {}}}}", "config.json:2: registries.hosts.https://a.io is not host[:port]"},
		{"same host twice", "{\"registries\": {\"hosts\": {\"docker.io\": {},\n\"index.docker.io\": {}}}}", "config.json:2: registries.hosts.index.docker.io is another name"},
		{"type", "{\"registries\": {\"hosts\": {\"a.io\": {\n\"insecure\": \"yes\"}}}}", "config.json:2: registries.hosts.a.io.insecure is neither true nor false"},
		{"mirror", "{\"registries\": {\"hosts\": {\"a.io\": {\n\"mirrors\": [\"ftp://x\"]}}}}", "config.json:2: registries.hosts.a.io.mirrors[0] has the scheme"},
		{"deep", strings.Repeat("[", 100), "nested deeper"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := writeConfig(t, tt.text)
			_, err := LoadConfig(path)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), path) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Error("the message shows a secret")
			}
		})
	}
}
