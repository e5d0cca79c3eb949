package main

import (
	"os"
	"os/exec"
	"strings"
)

// codeVersion is this project's commit, as git describes it; "unknown" outside a clone.
func codeVersion() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--exclude=*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// load is the machine's load average, as /proc/loadavg has it.
func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(raw))[:3], " ")
}
