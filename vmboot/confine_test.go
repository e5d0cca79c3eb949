package vmboot

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestFindGroup(t *testing.T) {
	const (
		v1 = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n31 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
		v2 = "26 22 0:23 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
	)
	for _, c := range []struct {
		controller, groups, mounts string
		dir                        string
		v2                         bool
	}{
		{"memory", "4:memory:/a/b\n0::/\n", v1, "/sys/fs/cgroup/memory/a/b", false},
		{"cpu", "1:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n", v1, "/sys/fs/cgroup/cpu/x", false},
		{"memory", "0::/user.slice/s.scope\n", v2, "/sys/fs/cgroup/user.slice/s.scope", true},
		{"memory", "0::/a/b/c\n", strings.Replace(v2, "0:23 / ", "0:23 /a/b ", 1), "/sys/fs/cgroup/c", true},
		{"memory", "0::/a/b\n", strings.Replace(v2, "0:23 / ", "0:23 /other ", 1), "", true},
		{"memory", "0::/a\n", v1, "", true},
		{"memory", "4:memory:/a\n", v2, "", false},
		{"memory", "", v2, "", false},
		{"memory", "nonsense\n", "nonsense\n - \n", "", false},
	} {
		dir, second, err := findGroup(c.controller, c.groups, c.mounts)
		if dir != c.dir || second != c.v2 || (err == nil) != (c.dir != "") {
			t.Errorf("%s of %q: %q, %v, %v", c.controller, c.groups, dir, second, err)
		}
	}
}

// procStatus returns a field of /proc/pid/status.
func procStatus(t *testing.T, pid int, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in the status of %d", field, pid)
	return ""
}

// A VMM is nobody's root: it runs as the caller or, where root starts it, as a user of its own, under QEMU's seccomp filter, in
// control groups if it may have some.
func TestVMMIsConfined(t *testing.T) {
	vm, _ := boot(t, testConfig(t), Setup{})
	pid := vm.Pid()
	uid, err := strconv.Atoi(strings.Fields(procStatus(t, pid, "Uid"))[1])
	switch {
	case err != nil:
		t.Error(err)
	case os.Geteuid() == 0 && (uid < firstUser || uid > lastUser):
		t.Errorf("started by root, it runs as user %d", uid)
	case os.Geteuid() != 0 && uid != os.Geteuid():
		t.Errorf("started by user %d, it runs as %d", os.Geteuid(), uid)
	}
	if os.Geteuid() == 0 && procStatus(t, pid, "CapEff") != "0000000000000000" {
		t.Errorf("it has capabilities %s", procStatus(t, pid, "CapEff"))
	}
	if s := procStatus(t, pid, "Seccomp"); s != "2" {
		t.Errorf("its seccomp mode is %s, want 2 (a filter)", s)
	}

	name := groupPrefix + strconv.Itoa(pid)
	dirs := []string{}
	for _, l := range limits(&vm.config) {
		own, v2, err := ownGroup(l.controller)
		if err != nil {
			continue
		}
		file, want := l.v1, l.valueV1
		if v2 {
			file, want = l.v2, l.valueV2
		}
		for _, base := range []string{own, filepath.Dir(own)} {
			if got, err := os.ReadFile(filepath.Join(base, name, file)); err == nil {
				dirs = append(dirs, filepath.Join(base, name))
				if strings.TrimSpace(string(got)) != want {
					t.Errorf("%s is %s, want %s", file, got, want)
				}
			}
		}
	}
	if missed := vm.Unlimited(); missed == nil && len(dirs) == 0 {
		t.Error("it is said to be limited and has no control group")
	} else if missed != nil {
		t.Logf("not all limited here: %v", missed)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || len(dirs) > 0 && !strings.Contains(string(groups), name) {
		t.Errorf("it is in %s, %v", groups, err)
	}
	vm.Kill()
	for _, dir := range dirs {
		if isDir(dir) {
			t.Errorf("%s is left", dir)
		}
	}
}

func TestForcedKVMIsTried(t *testing.T) {
	c := testConfig(t)
	accel, err := Accelerator(t.Context(), AccelKVM, c.Kernel)
	if err == nil {
		if p, perr := probeKVM(t.Context(), c.Kernel, false); perr != nil || !p.Works || accel != AccelKVM {
			t.Errorf("%q for a KVM that does not work: %+v, %v", accel, p, perr)
		}
	} else if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "tcg") {
		t.Errorf("not one line that says what to do: %q", err)
	}
}
