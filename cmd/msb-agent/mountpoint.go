package main

import (
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// mountPointXattr marks what exists only to be mounted on: package cow leaves it out of what a sandbox has changed.
const mountPointXattr = "user.msbfs.mountpoint"

// makeMountPoint makes the directory target where there is nothing, and what is missing above it.
func makeMountPoint(target string) error {
	if _, err := os.Stat(target); err == nil {
		return nil
	}
	if err := makeMountPoint(filepath.Dir(target)); err != nil {
		return err
	}
	return unnoticed(target, func() error { return os.Mkdir(target, 0o755) })
}

// makeMountFile is makeMountPoint for what files are mounted on.
func makeMountFile(target string) error {
	if err := makeMountPoint(filepath.Dir(target)); err != nil {
		return err
	}
	return unnoticed(target, func() error {
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// unnoticed has make make target, marks it, and gives its directory the times that it had. Where that cannot be done it is
// a change that shows, and no more.
func unnoticed(target string, make func() error) error {
	dir := filepath.Dir(target)
	var st syscall.Stat_t
	known := syscall.Stat(dir, &st) == nil
	if err := make(); err != nil {
		if os.IsExist(err) {
			return nil
		}
		return err
	}
	_ = unix.Setxattr(target, mountPointXattr, []byte("y"), 0)
	if known {
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{unix.Timespec(st.Atim), unix.Timespec(st.Mtim)}, 0)
	}
	return nil
}
