package main

import (
	"context"
	"os/exec"
	"path/filepath"
)

// podmanSystem is a full pull and a container on the host's network, in a store of its own.
func podmanSystem() system {
	store := func(t *trial) []string {
		return []string{"--root", filepath.Join(t.dir, "store"), "--runroot", filepath.Join(t.dir, "run"), "--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc"}
	}
	return system{
		key: "podman", name: "podman", needs: []string{"podman", "runc"}, version: func(string) string { return lineOf("podman", "--version") },
		start: func(ctx context.Context, t *trial) error {
			if t.n == 0 {
				if err := do(exec.CommandContext(ctx, "podman", append(store(t), "pull", "-q", "--tls-verify=false", t.ref)...), nil); err != nil {
					return err
				}
			}
			t.mark(markMounted)
			argv := t.img.argv()
			args := append(store(t), "run", "--rm", "--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--pull=never", "--entrypoint", argv[0], t.ref)
			return t.program(ctx, exec.Command("podman", append(args, argv[1:]...)...))
		},
		again: true, wipe: func(t *trial) error { return unmountIn(t.dir) },
	}
}

// umociSystem is a full pull by skopeo, unpacked by umoci.
func umociSystem() system {
	return system{
		key: "umoci", name: "skopeo + umoci + chroot", needs: []string{"skopeo", "umoci"}, version: func(string) string { return lineOf("umoci", "--version") },
		start: func(ctx context.Context, t *trial) error {
			root, err := unpack(ctx, t.dir, "docker://"+t.ref)
			if err != nil {
				return err
			}
			t.mark(markMounted)
			return t.inRoot(ctx, root)
		},
	}
}

// unpack copies an image into dir and unpacks it; the root directory is what it returns.
func unpack(ctx context.Context, dir, from string) (string, error) {
	layout := filepath.Join(dir, "layout")
	err := do(exec.CommandContext(ctx, "skopeo", "copy", "-q", "--src-tls-verify=false", from, "oci:"+layout+":latest"), nil)
	if err != nil {
		return "", err
	}
	bundle := filepath.Join(dir, "unpacked")
	err = do(exec.CommandContext(ctx, "umoci", "unpack", "--image", layout+":latest", bundle), nil)
	return filepath.Join(bundle, "rootfs"), err
}
