package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// writeBundle makes dir an OCI bundle that runs the image's command in root, on the host's network: what containerd gives a container.
// See https://github.com/opencontainers/runtime-spec/blob/main/config.md.
// Where the image's user is one by name, the image is there already.
func writeBundle(dir, root string, img *image) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	type object = map[string]any
	at := func(to, kind string, options ...string) object {
		return object{"destination": to, "type": kind, "source": kind, "options": options}
	}
	capabilities := []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
	uid, gid, err := img.user(root)
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(object{
		"ociVersion": "1.0.2",
		"root":       object{"path": root, "readonly": false},
		"hostname":   "bench",
		"process": object{
			"user": object{"uid": uid, "gid": gid}, "args": img.argv(), "env": img.env(), "cwd": img.cwd(),
			"capabilities": object{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
		},
		"mounts": []object{
			at("/proc", "proc", "nosuid", "noexec", "nodev"),
			at("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
			at("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
			at("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
			at("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		},
		"linux": object{"namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}},
	}, "", "\t")
	if err != nil {
		return fmt.Errorf("make a bundle: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o644)
}

// inRoot runs the image's command in the directory root, with /proc and /dev in a mount namespace of its own.
func (t *trial) inRoot(ctx context.Context, root string) error {
	uid, gid, err := t.img.user(root)
	if err != nil {
		return err
	}
	// Not by SysProcAttr.Chroot: Go stands still until its child has loaded the program, and the registry that the program
	// comes from may be in this process.
	const script = `root=$1; wd=$2; uid=$3; gid=$4; shift 4
mkdir -p "$root/proc" "$root/dev" "$root/$wd" && mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev"
exec unshare --root "$root" --wd "$wd" --setgid "$gid" --setuid "$uid" "$@"`
	args := []string{"--mount", "sh", "-ec", script, "sh", root, t.img.cwd(), strconv.FormatUint(uid, 10), strconv.FormatUint(gid, 10)}
	cmd := exec.Command("unshare", append(args, t.img.argv()...)...)
	cmd.Env = t.img.env()
	return t.program(ctx, cmd)
}

// mount is a line of /proc/self/mounts.
type mount struct{ dir, kind string }

// mountsIn are the mounts on and below dir, outermost first.
func mountsIn(dir string) []mount {
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	var all []mount
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) > 2 && (f[1] == dir || strings.HasPrefix(f[1], dir+"/")) {
			all = append(all, mount{f[1], f[2]})
		}
	}
	return all
}

// unmountIn takes away what is mounted on and below dir, also what is in use.
func unmountIn(dir string) error {
	var errs []error
	for _, m := range slices.Backward(mountsIn(dir)) {
		if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.dir, err))
		}
	}
	return errors.Join(errs...)
}
