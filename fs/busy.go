package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// BusyError says that a file system is in use. It is an EBUSY.
type BusyError struct {
	Dir   string
	Users []string // programs with their process numbers, and what is mounted below; as far as the caller may know
}

func (e *BusyError) Error() string {
	if len(e.Users) == 0 {
		return e.Dir + " is in use"
	}
	return fmt.Sprintf("%s is in use by %s", e.Dir, strings.Join(e.Users, ", "))
}

// Unwrap is EBUSY.
func (e *BusyError) Unwrap() error { return unix.EBUSY }

// TryUnmount unmounts it if nobody uses it, and waits until it is no longer served. Who uses it is in the error, a
// *BusyError.
func (m *Mounted) TryUnmount() error {
	select {
	case <-m.done:
		return nil
	default:
	}
	if err := m.plain(); err != nil {
		// In use, whatever fusermount3 calls it: who has mounted it may unmount it.
		return &BusyError{Dir: m.dir, Users: users(m.dir)}
	}
	return m.ended()
}

// maxUsers bounds how many users of a file system are named.
const maxUsers = 8

// users names who uses the file system mounted at dir: by an open file, a working directory, a root, a mapped file, or a
// mount below. It looks at links and tables only: to look at the file system could wait for its server.
func users(dir string) (found []string) {
	id, dev := "", ""
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		switch point := unescape(f[4]); {
		case point == dir:
			id, dev = f[0], f[2]
		case strings.HasPrefix(point, dir+"/"):
			found = append(found, "the mount on "+point)
		}
	}
	if id == "" {
		return nil
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return found
	}
	for _, proc := range procs {
		if len(found) >= maxUsers {
			return append(found, "others")
		}
		if uses(proc, dir, id, dev) {
			name, _ := os.ReadFile(proc + "/comm")
			found = append(found, strings.TrimSpace(string(name))+" ("+filepath.Base(proc)+")")
		}
	}
	return found
}

// uses tells whether the process proc uses the mount with that id, at dir, of device dev.
func uses(proc, dir, id, dev string) bool {
	for _, link := range []string{"/cwd", "/root", "/exe"} {
		if to, err := os.Readlink(proc + link); err == nil && (to == dir || strings.HasPrefix(to, dir+"/")) {
			return true
		}
	}
	fds, _ := os.ReadDir(proc + "/fdinfo")
	for _, fd := range fds {
		// proc_pid_fdinfo(5)
		info, err := os.ReadFile(proc + "/fdinfo/" + fd.Name())
		if err == nil && slices.Contains(strings.Split(string(info), "\n"), "mnt_id:\t"+id) {
			return true
		}
	}
	major, minor, _ := strings.Cut(dev, ":")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	maps, err := os.ReadFile(proc + "/maps")
	// proc_pid_maps(5): address, permissions, offset, device
	return errors.Join(err, errA, errB) == nil && strings.Contains(string(maps), fmt.Sprintf(" %02x:%02x ", a, b))
}
