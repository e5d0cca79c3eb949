package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestVolumes shows directories and files of the host in sandboxes.
func TestVolumes(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	src := t.TempDir()
	must(t, os.Mkdir(src+"/sub", 0o755))
	must(t, os.WriteFile(src+"/in", []byte("from the host\n"), 0o644))
	conf := filepath.Join(t.TempDir(), "conf")
	must(t, os.WriteFile(conf, []byte("key\n"), 0o600))

	o := h.launch("run", "--insecure", "--name", "one", "-v", src+":/data", "-v", src+"/sub:/data/ro:ro", "-v", conf+":/etc/app.conf", ref,
		"sh", "-c", "cat /data/in /etc/app.conf; echo out >/data/out; echo no >/data/ro/no; ls /data/ro; exit 3")
	if o.code != 3 || o.stdout != "from the host\nkey\n" || !strings.Contains(o.stderr, "Read-only") {
		t.Error(o)
	}
	if b, err := os.ReadFile(src + "/out"); string(b) != "out\n" || err != nil {
		t.Errorf("on the host: %q, %v", b, err)
	}
	// It has them again when it is started again, with what the host has made of them.
	must(t, os.WriteFile(src+"/in", []byte("later\n"), 0o644))
	h.must("msb-launch", "start", "one")
	if o := h.launch("inspect", "one"); !strings.Contains(o.stdout, `"/data/ro"`) {
		t.Error(o)
	}
	h.launch("rm", "-f", "one")

	for _, c := range []struct {
		volume, says string
		code         int
	}{
		{src + "/none:/data", "no such file or directory on this host", 125},
		{src + ":data", "SRC:DST", 2},
		{src, "SRC:DST", 2},
		{src + ":/", "not the root", 2},
		{"/dev/null:/data", "neither a directory nor a regular file", 125},
	} {
		o := h.launch("run", "-v", c.volume, ref, "true")
		if o.code != c.code || !strings.Contains(o.stderr, c.says) || strings.Count(o.stderr, "\n") != 1 {
			t.Errorf("-v %s: %v", c.volume, o)
		}
	}
}
