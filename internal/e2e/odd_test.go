package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// oddImage is an image as some are, and what running it must come to.
type oddImage struct {
	name    string
	entries []testimage.Entry // beside /busybox
	config  string            // the "config" of its config file
	args    []string
	code    int
	out     string // of stdout, all of it; may be a part of stderr where code says that it could not be started
}

// oddImages are few in CI; those of the long tests are beside them.
func oddImages() []oddImage {
	passwd := testimage.File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
	return []oddImage{
		{name: "nothing but a program", config: `{"Entrypoint":["/busybox"]}`, args: []string{"id"}, out: "uid=0 gid=0 groups=0\n"},
		{name: "everything set", entries: []testimage.Entry{testimage.Dir("etc", 0o755), passwd, testimage.File("etc/group", "root:x:0:\napp:x:1000:\nextra:x:77:app\n")},
			config: `{"Entrypoint":["/busybox","sh","-c","id; pwd; echo $K $HOME; /busybox stat -c %U /vol","--"],"Cmd":["a"],"Env":["K=v"],"WorkingDir":"/srv/deep","User":"app",
				"StopSignal":"SIGQUIT","Volumes":{"/vol":{}},"ExposedPorts":{"80/tcp":{}},"Labels":null,"Healthcheck":{"Test":["NONE"]}}`,
			out: "uid=1000(app) gid=1000(app) groups=77(extra),1000(app)\n/srv/deep\nv /home/app\nroot\n"},
		{name: "null everywhere", config: `{"Entrypoint":null,"Cmd":null,"Env":null,"Volumes":null,"WorkingDir":"","User":""}`, args: []string{"/busybox", "pwd"}, out: "/\n"},
		{name: "/bin and resolv.conf are links", entries: []testimage.Entry{testimage.Dir("usr", 0o755), testimage.Dir("usr/bin", 0o755), testimage.Symlink("bin", "usr/bin"),
			testimage.Symlink("usr/bin/sh", "/busybox"), testimage.Dir("etc", 0o755), testimage.Symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"), testimage.Symlink("var/run", "/run"),
			testimage.Dir("run", 0o755), testimage.Dir("run/app", 0o700)},
			config: `{"Cmd":["/bin/sh","-c","/busybox head -c 10 /etc/resolv.conf; echo; /busybox stat -c %a /var/run/app; echo x > /var/run/app/pid && echo ok"]}`,
			out:    "nameserver\n700\nok\n"},
		{name: "script without #!", entries: []testimage.Entry{testimage.Executable("entry", "echo never\n")}, config: `{"Entrypoint":["/entry"]}`, code: 126, out: "not a program"},
	}
}

// TestOddImages runs images that do without what most have.
func TestOddImages(t *testing.T) {
	needVM(t)
	runOdd(t, oddImages())
}

func runOdd(t *testing.T, images []oddImage) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("busybox-static is not installed: " + err.Error())
	}
	s := serve(t, registry.Options{})
	h := newHome(t)
	for _, c := range images {
		t.Run(c.name, func(t *testing.T) {
			layer, err := testimage.NewLayer(testimage.Gzip, append([]testimage.Entry{testimage.Executable("busybox", string(busybox))}, c.entries...)...)
			if err != nil {
				t.Fatal(err)
			}
			img, err := testimage.Image(testimage.Config{}, layer)
			if err != nil {
				t.Fatal(err)
			}
			if err := addWithConfig(s, "test/odd", img, c.config); err != nil {
				t.Fatal(err)
			}
			o := h.launch(append([]string{"run", "--insecure", "--pull", "always", s.Host() + "/test/odd"}, c.args...)...)
			said := o.stdout == c.out
			if c.code != 0 {
				said = strings.Contains(o.stderr, c.out)
			}
			if o.code != c.code || !said {
				t.Errorf("want status %d and %q; %v", c.code, c.out, o)
			}
		})
	}
}

// addWithConfig adds img under name with another "config" in its config file, byte for byte.
func addWithConfig(s *registry.Server, name string, img v1.Image, config string) error {
	if _, err := s.AddImage(name, img); err != nil {
		return err
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	var file map[string]json.RawMessage
	if err := json.Unmarshal(raw, &file); err != nil {
		return err
	}
	file["config"] = json.RawMessage(config)
	if raw, err = json.Marshal(file); err != nil {
		return err
	}
	digest, err := s.AddBlob(raw)
	if err != nil {
		return err
	}
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	m = m.DeepCopy()
	if m.Config.Digest, err = v1.NewHash(digest); err != nil {
		return err
	}
	m.Config.Size = int64(len(raw))
	if raw, err = json.Marshal(m); err != nil {
		return err
	}
	_, err = s.AddManifest(name, string(m.MediaType), raw)
	return err
}
