package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/microsandbox/msb-fs/vmboot"
)

// kernelWithDisks is the guest's kernel with the driver of virtio disks, which sandboxes have none of: it is taken from the
// kernel's own package. A kernel that is not Debian's must have it built in.
func kernelWithDisks(ctx context.Context, work string) (*vmboot.Kernel, error) {
	installed, err := vmboot.FindKernel("")
	if err != nil || installed.Release == "" {
		return installed, err
	}
	k := *installed
	dir := filepath.Join(work, "kernel")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	get := exec.CommandContext(ctx, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "linux-image-"+k.Release)
	get.Dir = dir
	if err := do(get, nil); err != nil {
		return nil, fmt.Errorf("get the driver of virtio disks: %w: try apt-get update", err)
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(packages) != 1 {
		return nil, errors.New("get the driver of virtio disks: apt-get has brought no package")
	}
	if err := do(exec.CommandContext(ctx, "dpkg-deb", "-x", packages[0], dir), nil); err != nil {
		return nil, err
	}
	k.Modules, err = filepath.Glob(filepath.Join(dir, "lib", "modules", k.Release, "kernel", "drivers", "block", "virtio_blk.ko*"))
	return &k, err
}
