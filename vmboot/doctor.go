package vmboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// Check is one thing this machine has or lacks.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Needed bool   `json:"needed"` // without it no sandbox starts
	Detail string `json:"detail"` // what was found; or what is missing and how to get it
}

// Doctor looks at what sandboxes and mounts need on this machine. It tries KVM if nobody has yet.
func Doctor(ctx context.Context) []Check {
	kernel := Check{Name: "kernel", Needed: true}
	k, err := FindKernel("")
	if err != nil {
		kernel.Detail = err.Error()
	} else {
		kernel.OK, kernel.Detail = true, fmt.Sprintf("Linux %s at %s", k.Release, k.Path)
	}
	agent := Check{Name: "agent", Needed: true}
	if binary, err := AgentBinary(); err != nil {
		agent.Detail = err.Error()
	} else {
		agent.OK, agent.Detail = true, fmt.Sprintf("built in, %d KiB", len(binary)>>10)
	}
	return []Check{checkQEMU(ctx), checkKVM(ctx, k), kernel, agent, checkFUSE()}
}

func checkQEMU(ctx context.Context) Check {
	c := Check{Name: "qemu", Needed: true}
	program, err := findQEMU("")
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	version, err := output(ctx, "/", program, "--version")
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	first, _, _ := strings.Cut(string(version), "\n")
	c.OK, c.Detail = true, program+": "+strings.TrimPrefix(first, "QEMU emulator ")
	return c
}

// checkKVM never fails the machine: emulation does what KVM does, more slowly.
func checkKVM(ctx context.Context, k *Kernel) Check {
	c := Check{Name: "kvm"}
	const instead = "sandboxes run emulated (tcg), several times slower"
	switch err := openKVM(); {
	case errors.Is(err, fs.ErrNotExist):
		c.Detail = "no /dev/kvm: this machine has no virtualization, or it is switched off in its firmware or by its host; " + instead
		return c
	case errors.Is(err, fs.ErrPermission):
		c.Detail = "/dev/kvm is there but not for this user: add it to the group kvm (sudo usermod -aG kvm $USER, then log in again); " + instead
		return c
	case err != nil:
		c.Detail = fmt.Sprintf("%v; %s", err, instead)
		return c
	}
	if k == nil {
		c.Detail = "/dev/kvm opens; whether a kernel boots under it can be tried once `msb-launch setup` has got one"
		return c
	}
	p, err := probeKVM(ctx, k, false)
	switch {
	case err != nil:
		c.Detail = fmt.Sprintf("/dev/kvm opens, but it could not be tried: %v; %s", err, instead)
	case !p.Works:
		c.Detail = fmt.Sprintf("/dev/kvm opens, but a stock kernel does not boot under it (%s); %s", p.Reason, instead)
	default:
		c.OK, c.Detail = true, "a stock kernel has booted under it"
	}
	return c
}

// checkFUSE is about mounts on the host; a sandbox's filesystem needs neither.
func checkFUSE() Check {
	c := Check{Name: "fuse"}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		c.Detail = fmt.Sprintf("%v: load the kernel module fuse; sandboxes work without, `msb-fs mount` does not", err)
		return c
	}
	f.Close()
	if os.Geteuid() == 0 {
		c.OK, c.Detail = true, "/dev/fuse opens"
		return c
	}
	helper, err := exec.LookPath("fusermount3")
	if err != nil {
		c.Detail = "fusermount3 is not installed (Debian: apt-get install fuse3): only root can use `msb-fs mount`"
		return c
	}
	c.OK, c.Detail = true, "/dev/fuse opens, "+helper
	return c
}
