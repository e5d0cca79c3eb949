package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// sociLeast is how large a layer must be that soci makes an index of, unless it is told otherwise.
const sociLeast = 10 << 20

// publishSOCI makes a SOCI index of img with the soci program, through a containerd of its own, and saves it.
func (s store) publishSOCI(ctx context.Context, img *image) (err error) {
	for _, program := range []string{"soci", "containerd", "ctr"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("there is no %s on the PATH: %w", program, errNotBuilt)
		}
	}
	if img.most < sociLeast {
		return fmt.Errorf("soci makes no index of layers below 10 MiB: %w", errNotBuilt)
	}
	fmt.Fprintf(s.progress, "making a SOCI index of image %s\n", img.name)
	plain := *img
	plain.artifacts = ""
	srv, ref, err := plain.serve(nil)
	if err != nil {
		return err
	}
	defer srv.Close()
	dir, err := os.MkdirTemp("", "mb-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmountIn(dir), os.RemoveAll(dir)) }()
	d, err := startContainerd(ctx, dir, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	soci := []string{"--address", containerdSocket(dir), "--root", filepath.Join(dir, "soci"), "--timeout", (10 * time.Minute).String()}
	if err := os.Mkdir(filepath.Join(dir, "soci"), 0o700); err != nil {
		return err
	}
	// Pulled as whole content: an index is made of what the layers are stored as.
	err = do(exec.CommandContext(ctx, "ctr", "-a", containerdSocket(dir), "content", "fetch", "--plain-http", ref), nil)
	if err == nil {
		err = do(exec.CommandContext(ctx, "soci", append(soci, "create", ref)...), nil)
	}
	if err == nil {
		err = do(exec.CommandContext(ctx, "soci", append(soci, "push", "--plain-http", ref)...), nil)
	}
	if err != nil {
		return err
	}
	return captureArtifacts(ctx, srv, img.repo(), img.digest.String(), img.artifacts)
}
