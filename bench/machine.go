package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what results were measured on: a line of machine.jsonl for each session.
type Machine struct {
	Time    time.Time `json:"time"`
	Version string    `json:"version"` // of this project's code, as git describes it
	Host    string    `json:"host"`
	Kernel  string    `json:"kernel"`
	System  string    `json:"system"`
	CPU     string    `json:"cpu"`
	CPUs    int       `json:"cpus"`
	Memory  int64     `json:"memory"` // bytes
	KVM     string    `json:"kvm"`    // what microVMs run on here
	Go      string    `json:"go"`
	Load    string    `json:"load"`
}

// MemoryGB is the machine's memory in 10^9 bytes.
func (m Machine) MemoryGB() float64 { return float64(m.Memory) / 1e9 }

// addMachine writes down what this machine is.
func (r *results) addMachine() error {
	m := Machine{Time: time.Now().UTC(), Version: r.version, CPUs: runtime.NumCPU(), Go: runtime.Version(), Load: load(), KVM: "no /dev/kvm: emulated"}
	m.Host, _ = os.Hostname()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		m.Memory = int64(s.Totalram) * int64(s.Unit)
	}
	m.System = valueIn("/etc/os-release", "PRETTY_NAME", "=")
	m.CPU = valueIn("/proc/cpuinfo", "model name", ":")
	if have("/dev/kvm") {
		m.KVM = "there is /dev/kvm; used where a stock kernel boots on it"
	}
	return appendLine(filepath.Join(r.dir, machineFile), m)
}

// valueIn is the first value of a key in a file of lines.
func valueIn(path, key, separator string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		if k, v, ok := strings.Cut(lines.Text(), separator); ok && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return ""
}

// decode parses JSON.
func decode(raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("parse %.100q: %w", raw, err)
	}
	return nil
}

// lineOf is the first line of a command's output.
func lineOf(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// codeVersion is this project's commit, as git describes it; "unknown" outside a clone.
func codeVersion() string {
	if v := lineOf("git", "describe", "--always", "--dirty", "--exclude=*"); v != "" {
		return v
	}
	return "unknown"
}

// load is the machine's load average, as /proc/loadavg has it.
func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(raw))[:3], " ")
}
