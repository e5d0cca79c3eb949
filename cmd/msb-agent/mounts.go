package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

type mountPoint struct {
	source, target, fstype string
	flags                  uintptr
	options                string
}

// mountKernelFilesystems mounts what every program expects and no image contains. /tmp stays the image's: a
// tmpfs there would hide what the image or an earlier run has left and take its size from memory.
func mountKernelFilesystems() error {
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
		// A directory the image lacks is made; where it is there, one call less.
		err := syscall.Mount(m.source, m.target, m.fstype, m.flags, m.options)
		if err == syscall.ENOENT {
			if err = os.MkdirAll(m.target, 0o755); err == nil {
				err = syscall.Mount(m.source, m.target, m.fstype, m.flags, m.options)
			}
		}
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
	return mountRun()
}

// mountRun puts a tmpfs on /run and makes the image's directories again in it, so that no file of an earlier
// boot is taken for one of this. Where the image keeps anything but directories there, it stays as it is.
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
		if err := os.Mkdir("/run", 0o755); err != nil {
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
