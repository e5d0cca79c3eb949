package remote

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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
  "cache": {"max_bytes": "20GB", "background": "eager"}, "index": {"push_to": ["r.example.com/idx"], "pull_from": ["a/b", "c"]},
  "registries": {
    "ca_certs": "ca.pem", "stall_timeout": "90s",
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
	if hub == nil || hub.Auth.PasswordEnv != "HUB" || !strings.Contains(hub.Auth.Where, "config.json:7: registries.hosts.docker.io.auth.password_env") || len(hub.Mirrors) != 2 {
		t.Errorf("docker.io: %+v", hub)
	}
	if !c.Hosts["ghcr.io"].Auth.Keyring || c.Hosts["quay.io"].Auth.SecretFile != filepath.Join(dir, "secrets/registries/quay") {
		t.Errorf("ghcr.io: %+v, quay.io: %+v", c.Hosts["ghcr.io"].Auth, c.Hosts["quay.io"].Auth)
	}
	if !c.Hosts["localhost:5000"].Insecure || len(c.CACerts) == 0 {
		t.Errorf("localhost: %+v", c.Hosts["localhost:5000"])
	}
	if c.Background != "eager" {
		t.Errorf("background %q", c.Background)
	}
	if c.StallTimeout != 90*time.Second || c.CacheMaxBytes != 20_000_000_000 || len(c.IndexPushTo) != 1 || len(c.IndexPullFrom) != 2 {
		t.Errorf("got %v, %d, %q, %q", c.StallTimeout, c.CacheMaxBytes, c.IndexPushTo, c.IndexPullFrom)
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
		{"stall", "{\"registries\": {\n\"stall_timeout\": \"soon\"}}", "config.json:2: registries.stall_timeout is \"soon\""},
		{"size", "{\"cache\": {\n\"max_bytes\": \"20 apples\"}}", "config.json:2: cache.max_bytes is not a number of bytes"},
		{"background", "{\"cache\": {\n\"background\": \"sometimes\"}}", "config.json:2: cache.background is \"sometimes\": use auto, eager or off"},
		{"huge size", "{\"cache\": {\n\"max_bytes\": \"99999999999TiB\"}}", "config.json:2: cache.max_bytes is not a number of bytes"},
		{"negative size", "{\"cache\": {\n\"max_bytes\": -1}}", "config.json:2: cache.max_bytes is not a number of bytes"},
		{"repository", "{\"index\": {\n\"push_to\": [\"A B\"]}}", "config.json:2: index.push_to[0] is \"A B\""},
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

func TestByteSize(t *testing.T) {
	for in, want := range map[string]int64{
		`0`: 0, `123`: 123, `"123"`: 123, `"5B"`: 5, `"20GB"`: 20_000_000_000, `"20 GiB"`: 20 << 30, `"1k"`: 1000, `"2Ki"`: 2048, `"3TB"`: 3_000_000_000_000,
		`"GB"`: -1, `"1.5GB"`: -1, `"1iB"`: -1, `"1GG"`: -1, `""`: -1, `true`: -1, `1e3`: -1, `"-1"`: -1, `"KB1"`: -1,
	} {
		n, err := parseJSON([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		got, err := byteSize(n, "k")
		if err == nil && got != want || err != nil && want >= 0 {
			t.Errorf("%s: %d, %v; want %d", in, got, err, want)
		}
	}
}
