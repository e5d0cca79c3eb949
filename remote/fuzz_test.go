package remote

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// What users write: whatever it is, it is read or refused in one line, and what is read has one normal form.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"python", "python:3.12", "localhost:5000/a/b@" + sha(nil), "a/b:1@" + sha(nil), "../x", "[::1]:1/a", "A", "a//b", "\x00", "docker.io/x:y", strings.Repeat("\x00\n", 600)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Normalize(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("%q", err)
			}
			return
		}
		again, err := Normalize(n)
		if err != nil || again != n {
			t.Errorf("%q becomes %q, which becomes %q, %v", s, n, again, err)
		}
		u, err := url.Parse("https://" + n[:strings.LastIndexAny(n, ":@")])
		if err != nil || strings.Contains(u.Path, "/../") || strings.Contains(u.Path, "//") || strings.HasSuffix(u.Path, "/..") {
			t.Errorf("%q becomes %q, which is no path", s, n)
		}
	})
}

// What users write into config.json.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"registries":{"ca_certs":"x","hosts":{"a.io":{"insecure":true,"auth":{"username":"u","password_env":"P"},"mirrors":["b.io","http://c/d"]}}}}`,
		`{"registries":{"hosts":{"a.io":{"auth":{"username":"u","store":"keyring"},"client_cert":"c","client_key":"k","skip_verify":false}},"stall_timeout":"0"}}`,
		`{"cache":{"max_bytes":"20GiB"},"index":{"push_to":["a/b"],"pull_from":[]},"home":null}`, `[`, `{"a":{"a":{}}}`, "{\"registries\":{\n\"x\":1}}", `"`, `nul`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p := &configParser{file: "/c/config.json", data: data, readFile: func(string) ([]byte, error) { return nil, http.ErrMissingFile }}
		c, err := p.parse()
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q", err)
			}
			return
		}
		for host, h := range c.Hosts {
			if u, err := url.Parse("https://" + host + "/v2/"); err != nil || u.Host != host {
				t.Errorf("host %q", host)
			}
			if a := h.Auth; a != nil && (a.Username == "" || a.PasswordEnv == "" && a.SecretFile == "" && !a.Keyring) {
				t.Errorf("auth %+v", a)
			}
		}
		if c.CacheMaxBytes < 0 {
			t.Errorf("cache of %d bytes", c.CacheMaxBytes)
		}
	})
}

// What registries write into headers.
func FuzzHeaders(f *testing.F) {
	f.Add("bytes 0-9/10", "120", "X-Amz-Date=20260101T000000Z&X-Amz-Expires=60", `Bearer realm="https://a/t",service=s, Basic realm="x"`)
	f.Add("bytes 5-4/*", "Wed, 21 Oct 2026 07:28:00 GMT", "se=2026-01-01T00:00:00Z", `Basic`)
	f.Add("bytes */10", "-1", "Expires=99999999999999999999", `,=",\"`)
	f.Add("bytes +1-2/3", "99999999999999999999", "X-Goog-Date=x&X-Goog-Expires=1", `Bearer realm="`)
	f.Fuzz(func(t *testing.T, contentRange, retryAfter, query, challenge string) {
		if first, last, total, ok := parseContentRange(contentRange); ok && (first < 0 || last < first || total >= 0 && total <= last) {
			t.Errorf("Content-Range %q: %d-%d/%d", contentRange, first, last, total)
		}
		now := time.Unix(1_700_000_000, 0)
		if d := parseRetryAfter(retryAfter, now); d < 0 || d > time.Hour {
			t.Errorf("Retry-After %q: %v", retryAfter, d)
		}
		if q, err := url.ParseQuery(query); err == nil {
			expiry(q)
		}
		for _, c := range parseChallenges(challenge) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Errorf("challenge %q: scheme %q", challenge, c.scheme)
			}
		}
		if c, ok := pickChallenge(http.Header{"Www-Authenticate": {challenge}}); ok && c.scheme != "basic" && c.params["realm"] == "" {
			t.Errorf("challenge %q: %+v", challenge, c)
		}
		parseMirror(challenge)
	})
}

// What registries send as manifests and configs.
func FuzzManifest(f *testing.F) {
	config := `{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":["` + sha(nil) + `"]}}`
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"`+sha([]byte(config))+`"},"layers":[{"digest":"`+sha(nil)+`","size":3}]}`), []byte(config))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+sha(nil)+`","platform":{"os":"linux","architecture":"arm","variant":""}}]}`), []byte(`{}`))
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		if m, err := parseManifest(manifest); err == nil && m.isIndex() {
			for _, p := range []string{"linux/amd64", "linux/arm/v7"} {
				want, _ := parsePlatform(p)
				if d, err := m.choose(want); err == nil && d.Digest.Validate() != nil {
					t.Errorf("chose %+v", d)
				}
			}
		}
		img, err := ParseImage("x", manifest, config)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q", err)
			}
			return
		}
		if len(img.Layers) == 0 || len(img.Layers) > maxLayers || img.Size() < 0 {
			t.Errorf("%d layers, %d bytes", len(img.Layers), img.Size())
		}
	})
}

// What helpers and other tools write into files of logins.
func FuzzAuthFile(f *testing.F) {
	f.Add("https://index.docker.io/v1/", "dTpw")
	f.Add("a.io/ns", "!")
	f.Fuzz(func(t *testing.T, key, auth string) {
		if h := authKeyHost(key); strings.Contains(h, "/") {
			t.Errorf("key %q: host %q", key, h)
		}
		if _, err := (authEntry{Auth: auth}).credential(); err != nil && len(auth) > 8 && strings.Contains(err.Error(), auth) {
			t.Errorf("%q shows %q", err, auth)
		}
	})
}
