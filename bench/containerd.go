package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// containerdSystem is a full pull by containerd, unpacked onto overlayfs, and a container by runc.
func containerdSystem() system {
	return system{
		key: "containerd", name: "containerd + overlayfs", needs: []string{"containerd", "ctr", "runc"},
		version: func(string) string { return lineOf("containerd", "--version") },
		prepare: func(ctx context.Context, t *trial) error { _, err := startContainerd(ctx, t.dir, ""); return err },
		start: func(ctx context.Context, t *trial) error {
			if t.n == 0 {
				if err := do(exec.CommandContext(ctx, "ctr", "-a", containerdSocket(t.dir), "images", "pull", "--plain-http", t.ref), nil); err != nil {
					return err
				}
			}
			t.mark(markMounted)
			return t.program(ctx, ctrRun("ctr", t, "overlayfs"))
		},
		again: true, wipe: wipeContainerd,
	}
}

func containerdSocket(dir string) string { return filepath.Join(dir, "containerd.sock") }

// startContainerd starts a containerd that keeps everything in dir; proxy is the socket of a snapshotter of the same name as its file
// without ".sock", or "".
func startContainerd(ctx context.Context, dir, proxy string) (*daemon, error) {
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.devmapper\"]\n[grpc]\n address = %q\n",
		filepath.Join(dir, "containerd"), filepath.Join(dir, "containerd.run"), containerdSocket(dir))
	if proxy != "" {
		name := filepath.Base(proxy[:len(proxy)-len(".sock")])
		config += fmt.Sprintf("[proxy_plugins.%s]\n type = \"snapshot\"\n address = %q\n", name, proxy)
	}
	file := filepath.Join(dir, "containerd.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	d, err := startDaemon(ctx, exec.Command("containerd", "--config", file, "--log-level", "error"), containerdSocket(dir))
	if err != nil {
		return nil, err
	}
	// The socket is there before it is answered.
	return d, do(exec.CommandContext(ctx, "ctr", "-a", containerdSocket(dir), "version"), nil)
}

// ctrRun is a container of the image's command on the host's network, by ctr or what is called as it is.
func ctrRun(program string, t *trial, snapshotter string) *exec.Cmd {
	return exec.Command(program, append([]string{"-a", containerdSocket(t.dir), "run", "--rm", "--net-host", "--snapshotter", snapshotter, t.ref, t.name()}, t.img.argv()...)...)
}

// wipeContainerd ends every daemon of a trial and unmounts what they leave.
func wipeContainerd(t *trial) error {
	err := endAll()
	return errors.Join(err, unmountIn(t.dir))
}
