package main

import (
	"context"
	"fmt"
	"os/exec"
)

// publishSOCI makes a SOCI index of img with the soci program, through a containerd of its own, and saves it.
func (s store) publishSOCI(ctx context.Context, img *image) error {
	if _, err := exec.LookPath("soci"); err != nil {
		return fmt.Errorf("there is no soci on the PATH: %w", errNotBuilt)
	}
	return errNotBuilt
}
