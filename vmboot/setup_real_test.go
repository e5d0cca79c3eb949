package vmboot

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// The real thing: apt, dpkg and Debian's own package.
func TestSetupKernel(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("apt-get is missing: kernels are set up on Debian only")
	}
	if testing.Short() {
		t.Skip("downloads a kernel package of 35 MB; run without -short")
	}
	dir := t.TempDir()
	k, err := SetupKernel(t.Context(), SetupOptions{Dir: dir, Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kernelAt(k.Path); err != nil {
		t.Error(err)
	}
	if k.Release == "" || len(k.Modules) == 0 {
		t.Errorf("set up %+v: no release or no modules", k)
	}
	left, err := filepath.Glob(filepath.Join(dir, "setup-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("the setup left %q behind (%v)", left, err)
	}
	if again, err := installedKernel(filepath.Join(dir, "kernel")); err != nil || again.Release != k.Release {
		t.Errorf("found again: %+v, %v", again, err)
	}
}
