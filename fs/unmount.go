package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Unmount unmounts whatever FUSE file system is at dir, also one whose server was killed. A file system in use is
// detached. Where nothing is mounted it does nothing.
func Unmount(ctx context.Context, dir string) error {
	dev, err := deviceOf(dir)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, unmountGrace)
	defer cancel()
	if plainUnmount(ctx, dir) == nil {
		return nil
	}
	abort(dir, dev)
	if err := detach(dir); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// plainUnmount unmounts dir, waiting while it is busy until ctx ends.
func plainUnmount(ctx context.Context, dir string) error {
	for pause := 2 * time.Millisecond; ; pause *= 2 {
		err := umount(dir, 0)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: not mounted
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func detach(dir string) error {
	err := umount(dir, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// umount is umount2(2), through fusermount3 for those who may not.
func umount(dir string, flags int) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW)
	}
	args := []string{"-u", dir}
	if flags&unix.MNT_DETACH != 0 {
		args = []string{"-u", "-z", dir}
	}
	var msg bytes.Buffer
	cmd := exec.Command("fusermount3", args...)
	cmd.Stderr = &msg
	if err := cmd.Run(); err != nil {
		if _, gone := deviceOf(dir); gone != nil {
			return nil
		}
		return fmt.Errorf("%s: %w", strings.TrimSpace(msg.String()), err)
	}
	return nil
}

// abort cuts the connection between a kernel and its server, so that nobody waits for it any more. It works as far as
// the caller may: MNT_FORCE is root's, the control file systems's file is the mounting user's.
func abort(dir, dev string) {
	_, minor, _ := strings.Cut(dev, ":")
	if minor != "" && os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0) == nil {
		return
	}
	if os.Geteuid() == 0 {
		_ = unix.Unmount(dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	}
}

// deviceOf returns "major:minor" of the FUSE file system mounted at dir. It asks the kernel's table and not the file
// system: who serves it must not wait for itself.
func deviceOf(dir string) (string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	dev := ""
	for line := range strings.Lines(string(table)) {
		// proc_pid_mountinfo(5): id parent major:minor root mountpoint options... - type source options
		head, tail, ok := strings.Cut(line, " - ")
		f := strings.Fields(head)
		if ok && len(f) >= 5 && strings.HasPrefix(tail, "fuse") && unescape(f[4]) == dir {
			dev = f[2] // the last one is on top
		}
	}
	if dev == "" {
		return "", fmt.Errorf("%s: no FUSE file system is mounted there: %w", dir, os.ErrNotExist)
	}
	return dev, nil
}

// unescape undoes the octal escapes of a mount table.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// allowOther reports whether ordinary users may let others into their mounts.
func allowOther() bool {
	conf, err := os.ReadFile("/etc/fuse.conf")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(conf)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}
