package vmboot

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrNoKernel is wrapped by errors about a guest kernel that is not there.
var ErrNoKernel = errors.New("no guest kernel")

// Kernel is a guest kernel on this machine.
type Kernel struct {
	Path    string   `json:"path"`    // vmlinux (ELF with a PVH note) or bzImage
	Release string   `json:"release"` // as uname -r says in the guest; "" for a kernel given by path
	Modules []string `json:"modules"` // module files, in the order they are to be loaded; "" paths never occur
}

// kernelFile describes the kernel SetupKernel installed, beside it.
const kernelFile = "kernel.json"

// SystemState is where root keeps what belongs to the machine and not to a user.
const SystemState = "/var/lib/msb-fs"

// StateDir returns the directory of machine assets the caller may write: SystemState for root, else
// $XDG_DATA_HOME/msb-fs or ~/.local/share/msb-fs.
func StateDir() (string, error) {
	if os.Geteuid() == 0 {
		return SystemState, nil
	}
	if data := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "msb-fs"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find a directory for the guest kernel: %w", err)
	}
	return filepath.Join(home, ".local", "share", "msb-fs"), nil
}

// FindKernel returns the kernel at path if one is given, else the one SetupKernel installed for this user, else
// the machine's. The error wraps ErrNoKernel where there is none and says how to get one.
func FindKernel(path string) (*Kernel, error) {
	if path != "" {
		return kernelAt(path)
	}
	own, err := StateDir()
	if err != nil {
		own = SystemState
	}
	for _, dir := range []string{own, SystemState} {
		k, err := installedKernel(filepath.Join(dir, "kernel"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return k, err
	}
	return nil, fmt.Errorf("%w in %s or %s: run `msb-launch setup`, or give one with --kernel", ErrNoKernel, own, SystemState)
}

func installedKernel(dir string) (*Kernel, error) {
	text, err := os.ReadFile(filepath.Join(dir, kernelFile))
	if err != nil {
		return nil, err
	}
	var k Kernel
	if err := json.Unmarshal(text, &k); err != nil {
		return nil, fmt.Errorf("%s: %w: run `msb-launch setup` again", filepath.Join(dir, kernelFile), err)
	}
	// Names inside are relative, so that the directory can be moved and copied.
	k.Path = filepath.Join(dir, k.Path)
	for i, m := range k.Modules {
		k.Modules[i] = filepath.Join(dir, m)
	}
	if _, err := os.Stat(k.Path); err != nil {
		return nil, fmt.Errorf("%w at %s, where the setup put one: run `msb-launch setup` again", ErrNoKernel, k.Path)
	}
	return &k, nil
}

// kernelAt takes a kernel of the user's own. A configuration beside it, named as distributions do, is believed.
func kernelAt(path string) (*Kernel, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w at %s: give the path of a vmlinux or bzImage, or leave --kernel out to use the one of `msb-launch setup`", ErrNoKernel, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the guest kernel: %w", err)
	}
	defer f.Close()
	head := make([]byte, 0x206)
	if n, _ := f.ReadAt(head, 0); n < len(head) || !isKernel(head) {
		return nil, fmt.Errorf("%s is neither a vmlinux nor a bzImage: QEMU cannot boot it; `msb-launch setup` gets one that it can", path)
	}
	release := ""
	for _, prefix := range []string{"vmlinuz-", "vmlinux-"} {
		if r, ok := strings.CutPrefix(filepath.Base(path), prefix); ok {
			release = r
		}
	}
	if release != "" {
		config, err := os.ReadFile(filepath.Join(filepath.Dir(path), "config-"+release))
		if err == nil {
			if err := checkConfig(config); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return &Kernel{Path: path, Release: release}, nil
}

// isKernel knows an ELF file, and a bzImage by its boot protocol header (Documentation/arch/x86/boot.rst).
func isKernel(head []byte) bool {
	return bytes.HasPrefix(head, []byte("\x7fELF")) || bytes.Equal(head[0x202:0x206], []byte("HdrS"))
}

// checkConfig says what a kernel configuration lacks to be a guest.
func checkConfig(config []byte) error {
	builtIn := make(map[string]bool)
	for s := bufio.NewScanner(bytes.NewReader(config)); s.Scan(); {
		if name, ok := strings.CutSuffix(s.Text(), "=y"); ok {
			builtIn[name] = true
		}
	}
	var missing []string
	for _, name := range []string{"CONFIG_FUSE_FS", "CONFIG_VIRTIO_FS", "CONFIG_VIRTIO_PCI", "CONFIG_VIRTIO_CONSOLE", "CONFIG_DEVTMPFS", "CONFIG_TMPFS", "CONFIG_BLK_DEV_INITRD"} {
		if !builtIn[name] {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this kernel cannot be a guest: %s must be built in (=y)", strings.Join(missing, ", "))
	}
	return nil
}

// moduleDir is where an installed kernel's modules lie.
const moduleDir = "modules"

// module is a kernel module, compressed if its name does not end in .ko.
type module struct {
	name string
	data []byte
}

// readModules reads what the guest needs for its network and disks, in the order of loading. A kernel given by path has
// none of them, and must have the driver built in.
func (k *Kernel) readModules() ([]module, error) {
	var modules []module
	for _, path := range k.Modules {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read a guest kernel module: %w: run `msb-launch setup` again", err)
		}
		modules = append(modules, module{filepath.Base(path), data})
	}
	return modules, nil
}
