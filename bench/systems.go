package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/microsandbox/msb-fs/internal/testimage"
)

// system is one way to start an image.
type system struct {
	name    string // as tables have it
	version string
	// start runs the image's program from nothing and returns when it has ended; its standard output goes to trial.out.
	start func(ctx context.Context, t *trial) error
	// complete waits until the whole image is local; nil where it is before the program starts.
	complete func(ctx context.Context, t *trial) error
	wipe     func(t *trial) error
}

// trial is one start.
type trial struct {
	dir   string // empty, for everything the system keeps
	ref   string
	form  testimage.Form
	out   io.Writer
	start time.Time
}

// chooseSystems finds the systems called names ("" is all), and says which are not there.
func chooseSystems(names, bin string) ([]system, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	o := ours{fs: filepath.Join(bin, "msb-fs"), launch: filepath.Join(bin, "msb-launch")}
	all := []struct {
		key   string
		needs []string
		sys   system
	}{
		{"mount", []string{o.fs}, system{name: "msb-fs mount + chroot", start: o.mountAndChroot, complete: o.wait, wipe: o.stop}},
		{"vm", []string{o.launch, "qemu-system-x86_64"}, system{name: "msb-launch (microVM)", start: o.microVM, complete: o.wait, wipe: o.stop}},
		{"umoci", []string{"skopeo", "umoci"}, system{name: "skopeo + umoci + chroot", version: version("umoci", "--version"), start: umoci}},
		{"podman", []string{"podman"}, system{name: "podman", version: version("podman", "--version"), start: podman, wipe: wipePodman}},
	}
	var out []system
	for _, a := range all {
		if names != "" && !strings.Contains(","+names+",", ","+a.key+",") {
			continue
		}
		missing := ""
		for _, n := range a.needs {
			if _, err := exec.LookPath(n); err != nil {
				missing = n
			}
		}
		if missing != "" {
			fmt.Fprintf(os.Stderr, "%s is not measured: there is no %s\n", a.sys.name, missing)
			continue
		}
		out = append(out, a.sys)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no system of %q to measure", names)
	}
	if os.Getuid() != 0 {
		return nil, errors.New("run it as root: it mounts and changes root directories")
	}
	return out, nil
}

func version(name string, arg string) string {
	out, err := exec.Command(name, arg).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// program is the image's program, for the systems that run it without a container runtime.
func program(ctx context.Context, root string, out io.Writer) error {
	// By chroot, not by SysProcAttr.Chroot: until its child has loaded the program, Go stands still, and the registry that the
	// program comes from is in this process.
	cmd := exec.CommandContext(ctx, "chroot", root, "/usr/bin/python3", "/app/main.py")
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return do(cmd, out)
}

// do runs a command; what it says on standard error is in the error.
func do(cmd *exec.Cmd, out io.Writer) error {
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// ours are this project's programs.
type ours struct{ fs, launch string }

func (o ours) cmd(ctx context.Context, t *trial, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "MSB_HOME="+filepath.Join(t.dir, "home"))
	return cmd
}

func (o ours) mountAndChroot(ctx context.Context, t *trial) error {
	root := filepath.Join(t.dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := do(o.cmd(ctx, t, o.fs, "mount", "--insecure", "--ro", t.ref, root), nil); err != nil {
		return err
	}
	if err := program(ctx, root, t.out); err != nil {
		return err
	}
	return o.assertLazy(ctx, t)
}

func (o ours) microVM(ctx context.Context, t *trial) error {
	if err := do(o.cmd(ctx, t, o.launch, "run", "--insecure", t.ref), t.out); err != nil {
		return err
	}
	return o.assertLazy(ctx, t)
}

// ask runs an msb-fs command that prints JSON.
func (o ours) ask(ctx context.Context, t *trial, into any, args ...string) error {
	var out bytes.Buffer
	if err := do(o.cmd(ctx, t, o.fs, append(args, "--format", "json")...), &out); err != nil {
		return err
	}
	return json.Unmarshal(out.Bytes(), into)
}

// assertLazy fails when an image that can be lazy was silently not.
func (o ours) assertLazy(ctx context.Context, t *trial) error {
	var i struct {
		Layers []struct {
			Mode string `json:"mode"`
		} `json:"layers"`
	}
	if err := o.ask(ctx, t, &i, "inspect", t.ref); err != nil {
		return err
	}
	for _, l := range i.Layers {
		if (t.form == testimage.EStargz || t.form == testimage.ZstdChunked) && l.Mode != "lazy-toc" && l.Mode != "full" {
			return fmt.Errorf("a layer was %s: this is no measurement of a lazy start", l.Mode)
		}
	}
	return nil
}

// wait returns when the daemon has nothing more to fetch.
func (o ours) wait(ctx context.Context, t *trial) error {
	for {
		var st struct {
			Fetching []string `json:"fetching"`
		}
		if err := o.ask(ctx, t, &st, "status"); err != nil || len(st.Fetching) == 0 {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		if time.Since(t.start) > 10*time.Minute {
			return fmt.Errorf("after ten minutes %v is not local", st.Fetching)
		}
	}
}

func (o ours) stop(t *trial) error { return do(o.cmd(context.Background(), t, o.fs, "stop"), nil) }

// umoci is a full pull by skopeo, unpacked by umoci.
func umoci(ctx context.Context, t *trial) error {
	layout := filepath.Join(t.dir, "layout")
	err := do(exec.CommandContext(ctx, "skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+t.ref, "oci:"+layout+":latest"), nil)
	if err != nil {
		return err
	}
	bundle := filepath.Join(t.dir, "bundle")
	if err := do(exec.CommandContext(ctx, "umoci", "unpack", "--image", layout+":latest", bundle), nil); err != nil {
		return err
	}
	return program(ctx, filepath.Join(bundle, "rootfs"), t.out)
}

// podman is a full pull and a container without a network, in a store of its own.
func podman(ctx context.Context, t *trial) error {
	return do(exec.CommandContext(ctx, "podman", append(podmanStore(t), "run", "--rm", "--tls-verify=false", "--network=none", t.ref)...), t.out)
}

func podmanStore(t *trial) []string {
	return []string{"--root", filepath.Join(t.dir, "store"), "--runroot", filepath.Join(t.dir, "run"), "--cgroup-manager=cgroupfs", "--events-backend=none"}
}

func wipePodman(t *trial) error {
	return do(exec.Command("podman", append(podmanStore(t), "system", "reset", "--force")...), nil)
}
