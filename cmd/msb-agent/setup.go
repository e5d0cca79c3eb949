package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/vmboot/agentproto"
	"golang.org/x/sys/unix"
)

// applySetup turns the machine into what the host wants before its first process.
func applySetup(s agentproto.Setup) error {
	if s.Time > 0 {
		// The hardware clock has whole seconds and the boot took some.
		tv := syscall.NsecToTimeval(time.Unix(0, s.Time).UnixNano())
		if err := syscall.Settimeofday(&tv); err != nil {
			return fmt.Errorf("set the clock: %w", err)
		}
	}
	if s.Hostname != "" {
		if err := syscall.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set the host name: %w", err)
		}
	}
	raiseLimits()
	if err := configureNetwork(s.Network); err != nil {
		return err
	}
	if err := writeNames(s); err != nil {
		return err
	}
	for _, m := range s.Mounts {
		if err := mountExtra(m); err != nil {
			return err
		}
	}
	return nil
}

// raiseLimits gives every process what it would have in a container: the kernel's own defaults are for a computer that many
// people share. It is no reason to fail.
func raiseLimits() {
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: maxFiles, Max: maxFiles})
	for name, value := range map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "0",            // nobody else's ports are here
		"net/ipv4/ping_group_range":           "0 2147483647", // ping needs no privilege
	} {
		os.WriteFile("/proc/sys/"+name, []byte(value), 0o644)
	}
}

// loadModules loads what the initramfs has for this machine's devices, and gives back its memory.
func loadModules() error {
	const dir = "/" + agentproto.Modules
	entries, err := os.ReadDir(dir) // sorted
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := loadModule(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("load kernel module %s: %w", e.Name(), err)
		}
	}
	return os.RemoveAll(dir)
}

// loadModule hands the kernel the module, which the kernel can unpack itself.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// ownFiles is where the files lie that this machine, and not the image, says the content of.
const ownFiles = "/dev/.msb"

// writeNames puts /etc/hostname, /etc/hosts and /etc/resolv.conf over the image's by bind mounts, so that the
// writable layer does not come to contain them.
func writeNames(s agentproto.Setup) error {
	if err := os.MkdirAll(ownFiles, 0o755); err != nil {
		return err
	}
	files := map[string]string{}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if s.Hostname != "" {
		files["hostname"] = s.Hostname + "\n"
		address := "127.0.1.1"
		if s.Network != nil {
			address, _, _ = strings.Cut(s.Network.Address, "/")
		}
		hosts += address + "\t" + s.Hostname + "\n"
	}
	for _, line := range s.Hosts {
		hosts += line + "\n"
	}
	files["hosts"] = hosts
	if s.Network != nil && len(s.Network.DNS) > 0 {
		files["resolv.conf"] = "nameserver " + strings.Join(s.Network.DNS, "\nnameserver ") + "\n"
	}
	for name, content := range files {
		own := filepath.Join(ownFiles, name)
		if err := os.WriteFile(own, []byte(content), 0o644); err != nil {
			return err
		}
		// Where /etc is a file, or a directory has such a name, nobody looks for it.
		if err := bindOver(own, "/etc/"+name); err != nil && !errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("put the machine's own /etc/%s in place: %w", name, err)
		}
	}
	return nil
}

// bindOver mounts the file own on target, which is made where the image has none. Of a symbolic link, as many images
// have for resolv.conf, what it leads to is made; one that leads nowhere is replaced.
func bindOver(own, target string) error {
	link, err := os.Readlink(target)
	if err != nil {
		return bindOn(own, target)
	}
	if !filepath.IsAbs(link) {
		link = filepath.Join(filepath.Dir(target), link)
	}
	if err := bindOn(own, link); err == nil {
		return nil
	}
	if err := os.Remove(target); err != nil {
		return err
	}
	return bindOn(own, target)
}

func bindOn(own, target string) error {
	err := syscall.Mount(own, target, "", syscall.MS_BIND, "")
	if err != syscall.ENOENT {
		return err
	}
	if err := makeMountFile(target); err != nil {
		return err
	}
	return syscall.Mount(own, target, "", syscall.MS_BIND, "")
}

func mountExtra(m agentproto.Mount) error {
	if m.File != "" {
		return mountFile(m)
	}
	if err := makeMountPoint(m.Target); err != nil {
		return fmt.Errorf("make the mount point %s: %w", m.Target, err)
	}
	var flags uintptr = syscall.MS_NOSUID | syscall.MS_NODEV
	if m.ReadOnly {
		flags |= syscall.MS_RDONLY
	}
	if err := syscall.Mount(m.Source, m.Target, m.Type, flags, m.Options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.Type, m.Target, err)
	}
	return nil
}

// mountFile shows one file of a filesystem, which itself is mounted where nobody looks.
func mountFile(m agentproto.Mount) error {
	whole := m
	whole.File, whole.Target = "", filepath.Join(ownFiles, m.Source)
	if err := mountExtra(whole); err != nil {
		return err
	}
	if err := bindOver(filepath.Join(whole.Target, m.File), m.Target); err != nil {
		return fmt.Errorf("mount a file on %s: %w", m.Target, err)
	}
	return nil
}
