package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestEnvironment(t *testing.T) {
	t.Setenv("FROM_HERE", "h")
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\n\nA=1\nFROM_HERE\nABSENT_HERE\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := environment([]string{file}, []string{"A=2", "B=x=y"})
	if want := []string{"A=1", "FROM_HERE=h", "A=2", "B=x=y"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if _, err := environment(nil, []string{"=x"}); err == nil {
		t.Error("a setting without a name was taken")
	}
}

// Only where the exit status would be a command's own has the launcher one of its own for failures.
func TestExitStatusOfFailures(t *testing.T) {
	home := t.TempDir()
	for command, want := range map[string]int{"start": 1, "stop": 1, "rm": 1, "inspect": 1, "logs": 1, "exec": 125} {
		args := []string{"--home", home, command, "absent"}
		if command == "exec" {
			args = append(args, "true")
		}
		if got := run(context.Background(), args); got != want {
			t.Errorf("%s of a sandbox that there is not: exit status %d, want %d", command, got, want)
		}
	}
}
