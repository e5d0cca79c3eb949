package main

import (
	"testing"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

// Every command says what it is for, and shows how it is used.
func TestHelp(t *testing.T) {
	var check func(*cobra.Command)
	check = func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s: no summary, or no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(commands())
}

// A mistake in the call is found before anything is done: no daemon is started for it.
func TestUsage(t *testing.T) {
	home := t.TempDir()
	for _, args := range [][]string{
		{"nonsense"}, {"images", "x"}, {"images", "--format", "xml"}, {"prune", "--all", "--format", "xml"}, {"images", "--log-level", "loud"},
		{"pull"}, {"pull", "--policy", "sometimes", "x"}, {"pull", "--username", "u", "x"}, {"mount", "x"}, {"mount", "--verify", "much", "x", "/mnt"},
		{"mount", "--ro", "--upper", "/u", "x", "/mnt"}, {"ls"}, {"cat", "x"}, {"stat", "x"}, {"umount"}, {"rmi"}, {"inspect"}, {"diff"}, {"commit", "x"},
		{"load"}, {"save", "x"}, {"save", "-o", "f"}, {"save", "--format", "zip", "-o", "f", "x"}, {"login", "h"}, {"logout"}, {"index", "push"},
		{"daemon", "x"}, {"stop", "x"}, {"version", "x"},
	} {
		if status := run(t.Context(), append(args, "--home", home)); status != cli.ExitUsage {
			t.Errorf("%q: status %d, want %d", args, status, cli.ExitUsage)
		}
	}
	if c, ok := api.Running(t.Context(), api.Home(home)); ok {
		c.Close()
		t.Error("a daemon was started")
	}
}
