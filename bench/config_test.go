package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestConfig is what becomes of configurations that images of others have.
func TestConfig(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		filepath.Join(root, "etc/passwd"):  "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/var/www:\nbad\nodd:x:one:1::/:\n",
		filepath.Join(root, "etc/group"):   "root:x:0:\nstaff:x:50:web\n",
		filepath.Join(outside, "passwd"):   "web:x:7:7::/:\n",
		filepath.Join(outside, "etc/keep"): "",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	leading := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(leading, "etc")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, root string
		uid, gid   uint64
		named      bool
		err        string
	}{
		{"", root, 0, 0, false, ""},
		{"1000", root, 1000, 0, false, ""},
		{"1000:50", root, 1000, 50, false, ""},
		{"web", root, 33, 34, true, ""},
		{"web:staff", root, 33, 50, true, ""},
		{"33:staff", root, 33, 50, true, ""},
		{"nobody", root, 0, 0, true, "/etc/passwd does not know"},
		{"web:nogroup", root, 0, 0, true, "/etc/group does not know"},
		{"odd", root, 0, 0, true, "user odd of the image"},
		{"web", leading, 0, 0, true, "look for user web"},
		{"web", outside, 0, 0, true, "does not know"},
	} {
		img := &image{}
		img.config.User = c.user
		uid, gid, err := img.user(c.root)
		if img.named() != c.named || c.err == "" && (err != nil || uid != c.uid || gid != c.gid) {
			t.Errorf("%q: %d:%d, by name %v, %v", c.user, uid, gid, img.named(), err)
		}
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%q: %v, want %s", c.user, err, c.err)
		}
	}
	img := &image{}
	img.config.Env = []string{"A=b"}
	if img.cwd() != "/" || len(img.env()) != 2 || img.env()[0] != debianPath {
		t.Errorf("%q, %q", img.cwd(), img.env())
	}
	img.config.Env, img.config.WorkingDir = []string{"PATH=/x"}, "/app"
	if img.cwd() != "/app" || len(img.env()) != 1 {
		t.Errorf("%q, %q", img.cwd(), img.env())
	}
}

// TestNeverReady waits for a program that has something else to say, and ends it.
func TestNeverReady(t *testing.T) {
	tr := &trial{img: &image{workload: workload{ready: "ready"}}, start: time.Now(), ready: make(chan struct{}), marks: map[string]float64{}, atReady: func() {}}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	cmd := exec.Command("sh", "-c", "echo not yet; echo no config >&2; exec sleep 300")
	err := tr.program(ctx, cmd)
	if !errors.Is(err, errNotReady) || !strings.Contains(err.Error(), "--ready") || cmd.ProcessState == nil {
		t.Errorf("%v, ended: %v", err, cmd.ProcessState)
	}
	err = tr.program(t.Context(), exec.Command("sh", "-c", "echo no config >&2; exit 3"))
	if err == nil || !strings.Contains(err.Error(), "exit status 3 before it was ready: no config") {
		t.Error(err)
	}
}
