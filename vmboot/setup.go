package vmboot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// SetupOptions are SetupKernel's settings; the zero value works.
type SetupOptions struct {
	Dir      string           // state directory; "" is StateDir's
	Progress func(msg string) // told what is being done; may be nil
}

// guestModuleFiles are the modules a guest may need, in the order they are to be loaded.
var guestModuleFiles = []string{
	"kernel/net/core/failover.ko",
	"kernel/drivers/net/net_failover.ko",
	"kernel/drivers/net/virtio_net.ko",
}

// SetupKernel downloads Debian's newest cloud kernel by apt, which checks its signature, and installs it,
// uncompressed and with the modules a guest needs, in the state directory. It needs no privilege and changes
// nothing else; another SetupKernel at the same time waits.
func SetupKernel(ctx context.Context, o SetupOptions) (*Kernel, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("set up the guest kernel: no kernel is known for %s: give one with --kernel", runtime.GOARCH)
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Dir == "" {
		var err error
		if o.Dir, err = StateDir(); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("set up the guest kernel: %w", err)
	}
	unlock, err := lockFile(filepath.Join(o.Dir, "setup.lock"))
	if err != nil {
		return nil, fmt.Errorf("set up the guest kernel: %w", err)
	}
	defer unlock()
	work, err := os.MkdirTemp(o.Dir, "setup-")
	if err != nil {
		return nil, fmt.Errorf("set up the guest kernel: %w", err)
	}
	defer os.RemoveAll(work)
	target := filepath.Join(o.Dir, "kernel")
	if k := upToDate(ctx, work, target); k != nil {
		o.Progress("Linux " + k.Release + " is in " + target + " already")
		return k, nil
	}
	deb, err := download(ctx, work, o.Progress)
	if err != nil {
		return nil, fmt.Errorf("set up the guest kernel: %w", err)
	}
	o.Progress("unpacking " + filepath.Base(deb))
	if _, err := output(ctx, work, "dpkg-deb", "-x", deb, "x"); err != nil {
		return nil, fmt.Errorf("set up the guest kernel: %w", err)
	}
	made, err := install(ctx, filepath.Join(work, "x"), filepath.Join(work, "kernel"))
	if err != nil {
		return nil, fmt.Errorf("set up the guest kernel: %w", err)
	}
	if err := replaceDir(filepath.Join(work, "kernel"), target); err != nil {
		return nil, fmt.Errorf("set up the guest kernel: %w", err)
	}
	o.Progress("installed Linux " + made.Release + " in " + target)
	return installedKernel(target)
}

// upToDate returns the kernel in target if it is the newest that the machine's package lists know.
func upToDate(ctx context.Context, work, target string) *Kernel {
	k, err := installedKernel(target)
	if err != nil {
		return nil
	}
	if name, err := newestKernel(ctx, work, nil); err != nil || name != "linux-image-"+k.Release {
		return nil
	}
	return k
}

// replaceDir puts the directory from in the place of to. A running machine keeps the kernel it has opened.
func replaceDir(from, to string) error {
	old := from + ".old" // lies in from's parent, which the caller removes
	if err := os.Rename(to, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Rename(from, to)
}

func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// install makes a kernel directory at dir of an unpacked kernel package at root.
func install(ctx context.Context, root, dir string) (*Kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("the package has %d files boot/vmlinuz-*, not one", len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	config, err := os.ReadFile(filepath.Join(root, "boot", "config-"+release))
	if err != nil {
		return nil, err
	}
	if err := checkConfig(config); err != nil {
		return nil, fmt.Errorf("Linux %s: %w", release, err)
	}
	image, err := os.ReadFile(images[0])
	if err != nil {
		return nil, err
	}
	vmlinux, err := extractVmlinux(image)
	if err != nil {
		return nil, fmt.Errorf("Linux %s: %w", release, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, moduleDir), 0o755); err != nil {
		return nil, err
	}
	k := &Kernel{Path: "vmlinux", Release: release}
	if err := os.WriteFile(filepath.Join(dir, k.Path), vmlinux, 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "config"), config, 0o644); err != nil {
		return nil, err
	}
	for _, name := range guestModuleFiles {
		stored, err := installModule(ctx, filepath.Join(root, "lib", "modules", release, name), filepath.Join(dir, moduleDir))
		if errors.Is(err, os.ErrNotExist) {
			continue // built in, or not of this version
		}
		if err != nil {
			return nil, err
		}
		k.Modules = append(k.Modules, filepath.Join(moduleDir, stored))
	}
	text, err := json.MarshalIndent(k, "", "\t")
	if err != nil {
		return nil, err
	}
	return k, os.WriteFile(filepath.Join(dir, kernelFile), append(text, '\n'), 0o644)
}

// installModule puts the module file path, or its compressed form, into dir and returns its name there. It is
// unpacked here where xz or zstd is installed: the guest could do it too, but every time and more slowly.
func installModule(ctx context.Context, path, dir string) (string, error) {
	base := filepath.Base(path)
	for _, form := range []struct{ suffix, tool string }{{"", ""}, {".xz", "xz"}, {".zst", "zstd"}} {
		content, err := os.ReadFile(path + form.suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		name := base + form.suffix
		if form.tool != "" {
			if plain, err := output(ctx, dir, form.tool, "-dc", path+form.suffix); err == nil {
				name, content = base, plain
			}
		}
		return name, os.WriteFile(filepath.Join(dir, name), content, 0o644)
	}
	return "", os.ErrNotExist
}

// download brings the kernel package into dir. Package lists the machine has are used; where they know of no
// fitting kernel, fresh ones are fetched into dir, which needs no root.
func download(ctx context.Context, dir string, progress func(string)) (string, error) {
	var options []string
	name, err := newestKernel(ctx, dir, options)
	if err != nil {
		progress("fetching package lists")
		if options, err = privateLists(ctx, dir); err != nil {
			return "", err
		}
		if name, err = newestKernel(ctx, dir, options); err != nil {
			return "", err
		}
	}
	progress("downloading " + name)
	_, err = output(ctx, dir, "apt-get", append(options, "-q", "download", name)...)
	if err != nil && options == nil {
		// The lists may be older than what the archive still has.
		progress("fetching package lists")
		if options, err = privateLists(ctx, dir); err != nil {
			return "", err
		}
		if name, err = newestKernel(ctx, dir, options); err != nil {
			return "", err
		}
		_, err = output(ctx, dir, "apt-get", append(options, "-q", "download", name)...)
	}
	if err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "linux-image-*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d packages, not one", name, len(debs))
	}
	return debs[0], nil
}

// privateLists fetches package lists into dir and returns the options that make apt use them.
func privateLists(ctx context.Context, dir string) ([]string, error) {
	for _, sub := range []string{"apt/lists/partial", "apt/cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	options := []string{
		"-o", "Dir::State::Lists=" + filepath.Join(dir, "apt/lists"),
		"-o", "Dir::Cache=" + filepath.Join(dir, "apt/cache"),
		"-o", "APT::Sandbox::User=", // dir may not be open to the user _apt
	}
	_, err := output(ctx, dir, "apt-get", append(options, "-q", "update")...)
	return options, err
}

// minKernel is the oldest kernel series taken: virtiofs with several queues and readdir caching.
var minKernel = [2]int{6, 12}

var kernelPackage = regexp.MustCompile(`^linux-image-(\d+)\.(\d+)(?:\.(\d+))?\S*-cloud-amd64$`)

// newestKernel returns the name of the newest cloud kernel package apt knows.
func newestKernel(ctx context.Context, dir string, options []string) (string, error) {
	list, err := output(ctx, dir, "apt-cache", append(options, "pkgnames", "linux-image-")...)
	if err != nil {
		return "", err
	}
	if name := newestOf(strings.Fields(string(list))); name != "" {
		return name, nil
	}
	return "", fmt.Errorf("apt knows no package linux-image-*-cloud-amd64 of version %d.%d or newer: "+
		"add Debian 12's security or backports archive to its sources, or give a kernel with --kernel", minKernel[0], minKernel[1])
}

func newestOf(packages []string) string {
	best, bestVersion := "", [3]int{minKernel[0], minKernel[1], -1}
	for _, name := range packages {
		m := kernelPackage.FindStringSubmatch(name)
		if m == nil || m[3] == "" || strings.HasSuffix(name, "-dbg") || strings.Contains(name, "unsigned") {
			continue // without a patch level it is a package that only depends on one
		}
		var v [3]int
		for i := range v {
			v[i], _ = strconv.Atoi(m[i+1])
		}
		if newer(v, bestVersion) {
			best, bestVersion = name, v
		}
	}
	return best
}

func newer(a, b [3]int) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] > b[i]
		}
	}
	return false
}

// output runs a program in dir and returns what it prints; what it complains about is in the error.
func output(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s is not installed", name)
	}
	if err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		return nil, fmt.Errorf("%s %s: %w: %s", name, args[len(args)-1], err, lines[len(lines)-1])
	}
	return stdout.Bytes(), nil
}
