package main

import (
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
