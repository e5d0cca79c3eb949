package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/microsandbox/msb-fs/vmboot/agentproto"
)

type mountPoint struct {
	source, target, fstype string
	flags                  uintptr
	options                string
}

// mountEarly mounts, still in the initramfs, what every program expects and no image contains.
func mountEarly() error {
	const plain = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	for _, m := range []mountPoint{
		{"devtmpfs", "/dev", "devtmpfs", syscall.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", "proc", plain, ""},
		{"sysfs", "/sys", "sysfs", plain, ""},
		{"devpts", "/dev/pts", "devpts", syscall.MS_NOSUID | syscall.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", plain, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", plain, "nsdelegate"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		err := syscall.Mount(m.source, m.target, m.fstype, m.flags, m.options)
		if err != nil && m.fstype != "mqueue" {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, name); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

const newRoot = "/root"

// mountRoot mounts the image's filesystem. It returns when the host has it.
func mountRoot() error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil { // the kernel has made one already
		return err
	}
	if err := syscall.Mount(agentproto.RootTag, newRoot, "virtiofs", 0, ""); err != nil {
		return fmt.Errorf("mount the root filesystem: %w", err)
	}
	return nil
}

// enterRoot makes the image's filesystem the root of every process and takes along what mountEarly mounted. The
// initramfs cannot be unmounted; it is left under the new root as switch_root(8) leaves it.
func enterRoot() error {
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		target := newRoot + dir
		st, err := os.Lstat(target)
		if err == nil && !st.IsDir() {
			// A link would be followed from here, where it leads elsewhere than in the image. Nothing can be meant by either.
			err = os.Remove(target)
			st = nil
		}
		if st == nil && (err == nil || os.IsNotExist(err)) {
			err = makeMountPoint(target)
		}
		if err == nil {
			err = syscall.Mount(dir, target, "", syscall.MS_MOVE, "")
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	err := syscall.Chdir(newRoot)
	if err == nil {
		err = syscall.Mount(".", "/", "", syscall.MS_MOVE, "")
	}
	if err == nil {
		err = syscall.Chroot(".")
	}
	if err == nil {
		err = syscall.Chdir("/")
	}
	if err != nil {
		return fmt.Errorf("enter the root filesystem: %w", err)
	}
	return mountRun()
}

// mountRun puts a tmpfs on /run and makes the image's directories again in it, so that no file of an earlier
// boot is taken for one of this. Where the image keeps anything but directories there, it stays as it is. /tmp always
// does: a tmpfs would hide what the image or an earlier run has left there, and take its size from memory.
func mountRun() error {
	type dir struct {
		path     string
		mode     os.FileMode
		uid, gid int
	}
	var dirs []dir
	onlyDirs := true
	err := filepath.WalkDir("/run", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if onlyDirs = d.IsDir() && len(dirs) < 256; !onlyDirs {
			return filepath.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		dirs = append(dirs, dir{path, info.Mode(), int(st.Uid), int(st.Gid)})
		return nil
	})
	if os.IsNotExist(err) {
		if err := makeMountPoint("/run"); err != nil {
			return nil // a read-only root without /run is the image's choice
		}
		dirs, err = nil, nil
	}
	if err != nil || !onlyDirs {
		return err
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on /run: %w", err)
	}
	for _, d := range dirs {
		if err := os.Mkdir(d.path, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		if err := os.Chown(d.path, d.uid, d.gid); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
	}
	return nil
}
