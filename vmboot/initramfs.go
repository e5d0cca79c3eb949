package vmboot

import (
	"bytes"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/vmboot/agentproto"
)

// initramfs returns an anonymous file with the agent as the guest's first program. From there, and not from the
// root filesystem, the agent is up before the image is: its runtime looks for files that no image has, and that one
// is absent is not known before the image's last byte.
func initramfs(c *Config) (*os.File, error) {
	agent, err := AgentBinary()
	if err != nil {
		return nil, err
	}
	var modules []module
	if c.Network != nil || len(c.Disks) > 0 {
		if modules, err = c.Kernel.readModules(); err != nil {
			return nil, err
		}
	}
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the initramfs: %w", err)
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	if _, err := f.Write(cpio(agent, modules...)); err != nil {
		f.Close()
		return nil, fmt.Errorf("make the initramfs: %w", err)
	}
	return f, nil
}

// cpio returns an archive of the program init, /dev, /dev/console and the modules, whose names sort as they are to be loaded, in the "newc" format
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func cpio(init []byte, modules ...module) []byte {
	var b bytes.Buffer
	entry := func(name string, mode, major, minor uint32, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
		pad(&b)
		b.Write(data)
		pad(&b)
	}
	entry("dev", syscall.S_IFDIR|0o755, 0, 0, nil)
	entry("dev/console", syscall.S_IFCHR|0o600, 5, 1, nil)
	entry("init", syscall.S_IFREG|0o755, 0, 0, init)
	if len(modules) > 0 {
		entry(agentproto.Modules, syscall.S_IFDIR|0o700, 0, 0, nil)
	}
	for i, m := range modules {
		entry(fmt.Sprintf("%s/%02d-%s", agentproto.Modules, i, m.name), syscall.S_IFREG|0o600, 0, 0, m.data)
	}
	entry("TRAILER!!!", 0, 0, 0, nil)
	return b.Bytes()
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
