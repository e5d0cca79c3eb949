package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The lazy snapshotters that others have written for containerd, measured where their daemons are on the PATH.

// stargzSystem is stargz-snapshotter with its own defaults.
func stargzSystem() system {
	return system{
		key: "stargz", name: "stargz-snapshotter", needs: []string{"containerd", "containerd-stargz-grpc", "ctr-remote", "runc"},
		version: func(string) string { return "stargz-snapshotter " + lineOf("containerd-stargz-grpc", "--version") },
		forms:   []string{"estargz", "zstd-chunked"}, reads: []string{"estargz", "zstd-chunked"},
		prepare: func(ctx context.Context, t *trial) error {
			socket := filepath.Join(t.dir, "stargz.sock")
			host, _, _ := strings.Cut(t.ref, "/")
			config := filepath.Join(t.dir, "stargz.toml")
			text := fmt.Sprintf("[[resolver.host.%q.mirrors]]\nhost = %q\ninsecure = true\n", host, host)
			if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
				return err
			}
			cmd := exec.Command("containerd-stargz-grpc", "--root", filepath.Join(t.dir, "stargz"), "--address", socket, "--config", config, "--log-level", "error")
			if _, err := startDaemon(ctx, cmd, socket); err != nil {
				return err
			}
			_, err := startContainerd(ctx, t.dir, socket)
			return err
		},
		start: func(ctx context.Context, t *trial) error {
			cmd := exec.CommandContext(ctx, "ctr-remote", "-a", containerdSocket(t.dir), "images", "rpull", "--plain-http", "--snapshotter", "stargz", t.ref)
			if err := do(cmd, nil); err != nil {
				return err
			}
			t.mark(markMounted)
			return t.program(ctx, ctrRun("ctr-remote", t, "stargz"))
		},
		lazy: lazyMounts("stargz"),
		wipe: wipeContainerd,
	}
}

// sociSystem is soci-snapshotter, with indexes of its first version allowed: those that go beside an image that stays as it is.
func sociSystem() system {
	return system{
		key: "soci", name: "soci-snapshotter", needs: []string{"containerd", "soci-snapshotter-grpc", "ctr-remote", "runc"},
		version: func(string) string { return lineOf("soci-snapshotter-grpc", "--version") },
		lacks: func() string {
			help, _ := exec.Command("ctr-remote", "images", "rpull", "--help").Output()
			if !strings.Contains(string(help), "use-containerd-labels") {
				return "ctr-remote that knows --use-containerd-labels (stargz-snapshotter 0.13 or later)"
			}
			return ""
		},
		forms: []string{"gzip+soci"}, reads: []string{"gzip+soci"},
		prepare: func(ctx context.Context, t *trial) error {
			socket := filepath.Join(t.dir, "soci.sock")
			host, _, _ := strings.Cut(t.ref, "/")
			config := filepath.Join(t.dir, "soci.toml")
			// It asks the registry at a URL, and its containerd for what small layers are.
			text := fmt.Sprintf("[pull_modes.soci_v1]\nenable = true\n[[resolver.host.%q.mirrors]]\nhost = %q\ninsecure = true\n[content_store]\ncontainerd_address = %q\n",
				host, "http://"+host, containerdSocket(t.dir))
			if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
				return err
			}
			behind := filepath.Join(t.dir, "soci-daemon.sock")
			cmd := exec.Command("soci-snapshotter-grpc", "--root", filepath.Join(t.dir, "soci"), "--address", behind, "--config", config, "--log-level", "error")
			if _, err := startDaemon(ctx, cmd, behind); err != nil {
				return err
			}
			stop, err := addNamespace(socket, behind)
			if err != nil {
				return err
			}
			t.after = append(t.after, stop)
			_, err = startContainerd(ctx, t.dir, socket)
			return err
		},
		start: func(ctx context.Context, t *trial) error {
			cmd := exec.CommandContext(ctx, "ctr-remote", "-a", containerdSocket(t.dir), "images", "rpull", "--plain-http", "--use-containerd-labels", "--snapshotter", "soci", t.ref)
			if err := do(cmd, nil); err != nil {
				return err
			}
			t.mark(markMounted)
			return t.program(ctx, ctrRun("ctr-remote", t, "soci"))
		},
		lazy: lazyMounts("soci"),
		wipe: wipeContainerd,
	}
}

// nydusSystem is nydus-snapshotter, which needs an image of its own form: one that --image names as it is.
func nydusSystem() system {
	return system{
		key: "nydus", name: "nydus-snapshotter", needs: []string{"containerd", "containerd-nydus-grpc", "nydusd", "ctr", "runc"},
		version: func(string) string { return lineOf("containerd-nydus-grpc", "--version") },
		forms:   []string{"as-is"}, reads: []string{"as-is"},
		prepare: func(ctx context.Context, t *trial) error {
			socket := filepath.Join(t.dir, "nydus.sock")
			cmd := exec.Command("containerd-nydus-grpc", "--root", filepath.Join(t.dir, "nydus"), "--address", socket, "--log-level", "error")
			if _, err := startDaemon(ctx, cmd, socket); err != nil {
				return err
			}
			_, err := startContainerd(ctx, t.dir, socket)
			return err
		},
		start: func(ctx context.Context, t *trial) error {
			cmd := exec.CommandContext(ctx, "ctr", "-a", containerdSocket(t.dir), "images", "pull", "--plain-http", "--snapshotter", "nydus", t.ref)
			if err := do(cmd, nil); err != nil {
				return err
			}
			t.mark(markMounted)
			return t.program(ctx, ctrRun("ctr", t, "nydus"))
		},
		lazy: lazyMounts("nydus"),
		wipe: wipeContainerd,
	}
}

// lazyMounts fails when a snapshotter has no FUSE mount below its directory: it has then unpacked the image as anybody does.
func lazyMounts(dir string) func(context.Context, *trial) error {
	return func(_ context.Context, t *trial) error {
		for _, m := range mountsIn(filepath.Join(t.dir, dir)) {
			if strings.HasPrefix(m.kind, "fuse") {
				return nil
			}
		}
		return fmt.Errorf("no layer is mounted lazily")
	}
}
