package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const pass = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
	for _, c := range []struct {
		name, events string
		strict       bool
		status       int
		says         string
	}{
		{"pass", pass + `{"Action":"pass","Package":"p"}`, true, 0, "run: 1 passed, 0 failed, 0 skipped"},
		{"nothing", "", false, 1, "run: 0 passed"},
		{"failure", `{"Action":"output","Package":"p","Test":"TestA","Output":"because\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestA"}`, false, 1, "because"},
		{"timeout", pass + `{"Action":"output","Package":"p","Test":"TestB","Output":"panic\n"}` + "\n" + `{"Action":"fail","Package":"p"}`, false, 1, "panic"},
		{"does not build", pass + `{"Action":"build-output","Output":"x.go:1: no\n"}` + "\n" + `{"Action":"fail","Package":"q"}`, false, 1, "x.go:1: no"},
		{"skip", pass + `{"Action":"skip","Package":"p","Test":"TestB"}`, false, 0, "1 skipped"},
		{"strict skip", pass + `{"Action":"skip","Package":"p","Test":"TestB"}`, true, 1, "p TestB"},
		{"explained skip", pass + `{"Action":"skip","Package":"p","Test":"TestC/x"}`, true, 0, "1 skipped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			r := report{out: &out, allowed: []string{"p TestC/*"}, output: map[string][]string{}}
			if err := r.read(strings.NewReader(c.events)); err != nil {
				t.Fatal(err)
			}
			if got := r.end("run", c.strict); got != c.status || !strings.Contains(out.String(), c.says) {
				t.Errorf("status %d, want %d; said\n%s", got, c.status, out.String())
			}
		})
	}
}

func TestReadSkips(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skips")
	if err := os.WriteFile(path, []byte("# why\n\np TestA it is so\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readSkips(path); err != nil || len(got) != 1 || got[0] != "p TestA" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("p TestA\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSkips(path); err == nil {
		t.Error("a skip without a reason was taken")
	}
}
