package vmboot

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Dynamic users of systemd(1) come from this range too, and nobody else: a number that no account has.
const (
	firstUser = 61184
	lastUser  = 65519
)

// unprivileged returns the user that a VMM started by root runs as: a number of its own, so that one guest that has taken over its
// VMM has no power over another's, with the group that /dev/kvm is for. It is nil for everybody but root, who may not, and
// needs not, become somebody else, and where only root may open the /dev/kvm that is needed.
func unprivileged(number int, kvm bool) *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	id := uint32(firstUser + number%(lastUser-firstUser+1))
	c := &syscall.Credential{Uid: id, Gid: id}
	if !kvm {
		return c
	}
	var st syscall.Stat_t
	switch err := syscall.Stat("/dev/kvm", &st); {
	case err != nil:
		return nil
	case st.Mode&0o006 == 0o006:
	case st.Mode&0o060 == 0o060 && st.Gid != 0:
		c.Groups = []uint32{st.Gid}
	default:
		return nil
	}
	return c
}

// readable says whether everybody may read f.
func readable(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&0o004 != 0
}

// limit is one setting of a control group.
type limit struct {
	controller string
	v1, v2     string // files; "" where that version has none
	valueV1    string
	valueV2    string
}

const (
	// vmmMiB is what a VMM needs beside the guest's memory; translating code needs more.
	vmmMiB        = 256
	translatorMiB = 1536 // QEMU keeps up to a gigabyte of it
	cpuPeriod     = 100000
)

// limits are what a VMM that runs c may take: its guest's memory and processors, and what it needs itself. More than that it only
// asks for when it is no longer itself.
func limits(c *Config) []limit {
	memory := c.MemoryMiB + vmmMiB
	if c.Accel == AccelTCG {
		memory += translatorMiB
	}
	bytes, quota := strconv.Itoa(memory<<20), strconv.Itoa(c.CPUs*cpuPeriod+cpuPeriod/2)
	return []limit{
		{"memory", "memory.limit_in_bytes", "memory.max", bytes, bytes},
		{"cpu", "cpu.cfs_quota_us", "cpu.max", quota, quota + " " + strconv.Itoa(cpuPeriod)},
	}
}

// confine puts pid into control groups of its own with c's limits, where this process may make some: below its own or, as the
// second version of cgroups has it, beside it. What could not be limited is in missed. release removes the groups when pid has ended.
func confine(pid int, c *Config) (release func(), missed error) {
	var made []string
	errs := make([]error, 0)
	for _, l := range limits(c) {
		dir, err := l.apply(pid)
		if err != nil {
			errs = append(errs, fmt.Errorf("limit %s: %w", l.controller, err))
			continue
		}
		if !slices.Contains(made, dir) {
			made = append(made, dir)
		}
	}
	return func() {
		for _, dir := range made {
			os.Remove(dir)
		}
	}, errors.Join(errs...)
}

var errNoGroup = errors.New("no control group that this process may divide")

// apply puts pid into a group with l and returns the group's directory.
func (l *limit) apply(pid int) (dir string, err error) {
	own, v2, err := ownGroup(l.controller)
	if err != nil {
		return "", err
	}
	file, value := l.v1, l.valueV1
	bases := []string{own}
	if v2 {
		file, value = l.v2, l.valueV2
		bases = append(bases, filepath.Dir(own)) // a group with processes has no others with limits (cgroups(7))
	}
	for _, base := range bases {
		sweep(base)
		dir = filepath.Join(base, groupPrefix+strconv.Itoa(pid))
		if os.Mkdir(dir, 0o755) != nil && !isDir(dir) {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil && v2 {
			os.WriteFile(filepath.Join(base, "cgroup.subtree_control"), []byte("+"+l.controller), 0)
		}
		err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		}
		if err == nil {
			return dir, nil
		}
		os.Remove(dir)
	}
	return "", errNoGroup
}

// groupPrefix and a process's number are the name of its group.
const groupPrefix = "msb-vm-"

// sweep removes the groups of processes that are no more, which a launcher that was killed has left.
func sweep(base string) {
	left, err := filepath.Glob(filepath.Join(base, groupPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range left {
		if !isDir(filepath.Join("/proc", strings.TrimPrefix(filepath.Base(dir), groupPrefix))) {
			os.Remove(dir)
		}
	}
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// ownGroup returns the directory of this process's group that has the controller, and whether that is of cgroups' second
// version (proc_pid_cgroup(5), proc_pid_mountinfo(5)).
func ownGroup(controller string) (dir string, v2 bool, err error) {
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", false, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false, err
	}
	return findGroup(controller, string(groups), string(mounts))
}

func findGroup(controller, groups, mounts string) (dir string, v2 bool, err error) {
	path := "" // of the group below its hierarchy
	for line := range strings.Lines(groups) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if slices.Contains(strings.Split(parts[1], ","), controller) {
			path, v2 = parts[2], false
			break
		}
		if parts[1] == "" {
			path, v2 = parts[2], true
		}
	}
	for s := bufio.NewScanner(strings.NewReader(mounts)); s.Scan() && path != ""; {
		before, after, ok := strings.Cut(s.Text(), " - ")
		mount, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 5 || len(kind) < 3 {
			continue
		}
		if v2 && kind[0] != "cgroup2" || !v2 && (kind[0] != "cgroup" || !slices.Contains(strings.Split(kind[2], ","), controller)) {
			continue
		}
		below, err := filepath.Rel(mount[3], path)
		if err != nil || strings.HasPrefix(below, "..") {
			return "", v2, errNoGroup // not to be seen from here
		}
		return filepath.Join(mount[4], below), v2, nil
	}
	return "", v2, errNoGroup
}
