package msb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
)

func newSpec(t *testing.T, name string) *Spec {
	t.Helper()
	s := &Spec{Name: name, Image: "python"}
	if err := s.complete(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSandboxDirectoryLifecycle(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	d, lock, err := create(h.home, newSpec(t, "worker"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := create(h.home, newSpec(t, "worker")); !errors.Is(err, ErrExists) {
		t.Errorf("a second sandbox of the name: %v, want ErrExists", err)
	}
	if !d.running() {
		t.Error("a locked sandbox does not count as running")
	}
	if _, err := d.tryLock(); !errors.Is(err, ErrRunning) {
		t.Errorf("second lock: %v, want ErrRunning", err)
	}
	sb, err := h.Get("worker")
	if err != nil || sb.Image != "python" {
		t.Fatalf("Get: %+v, %v", sb, err)
	}
	if err := sb.Remove(context.Background(), false); !errors.Is(err, ErrRunning) {
		t.Errorf("remove while running: %v, want ErrRunning", err)
	}
	lock.Close()
	if d.running() {
		t.Error("it still counts as running after its lock was released")
	}
	if err := sb.Remove(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Get("worker"); !errors.Is(err, ErrNoSandbox) {
		t.Errorf("Get after Remove: %v, want ErrNoSandbox", err)
	}
	if left, _ := os.ReadDir(h.home.Sandboxes()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// What a killed launcher leaves of an ephemeral sandbox, or of one that it was about to make, is removed.
func TestListCollectsWhatCrashesLeave(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	s := newSpec(t, "")
	s.Ephemeral = true
	d, lock, err := create(h.home, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(d.state(), State{}); err != nil {
		t.Fatal(err)
	}
	half := h.home.Sandbox(newPrefix + "half")
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if all, err := h.List(); err != nil || len(all) != 1 {
		t.Fatalf("while it runs: %v, %v", all, err)
	}
	lock.Close()
	old := time.Now().Add(-2 * newGrace)
	if err := os.Chtimes(half, old, old); err != nil {
		t.Fatal(err)
	}
	if all, err := h.List(); err != nil || len(all) != 0 {
		t.Fatalf("after it ended: %v, %v", all, err)
	}
	if left, _ := os.ReadDir(h.home.Sandboxes()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestGetByID(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	s := newSpec(t, "named")
	_, lock, err := create(h.home, s)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for _, name := range []string{"named", s.ID, s.ID[:4]} {
		if sb, err := h.Get(name); err != nil || sb.Name != "named" {
			t.Errorf("Get(%q): %v, %v", name, sb, err)
		}
	}
	if _, err := h.Get(""); !errors.Is(err, ErrNoSandbox) {
		t.Errorf("Get of nothing: %v", err)
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"a": true, "a.b-c_9": true, ".new-x": false, "a/b": false, "..": false, "-a": false, strings.Repeat("x", 64): false} {
		if err := (&Spec{Name: name, Image: "i"}).complete(); (err == nil) != ok {
			t.Errorf("name %q: %v, want it accepted: %v", name, err, ok)
		}
	}
}

func TestLogs(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	s := newSpec(t, "worker")
	d, lock, err := create(h.home, s)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	w, err := openLogs(d.logs())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w.stream("stdout"), "one\ntwo\n")
	fmt.Fprint(w.stream("stderr"), "three")
	sb, err := h.Get("worker")
	if err != nil {
		t.Fatal(err)
	}
	read := func(tail int) (out []string) {
		err := sb.Logs(context.Background(), tail, false, func(l LogLine) error {
			out = append(out, l.Stream+":"+string(l.Log))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := []string{"stdout:one\n", "stdout:two\n", "stderr:three"}
	if got := read(-1); !slices.Equal(got, all) {
		t.Errorf("all: %q", got)
	}
	if got := read(2); !slices.Equal(got, all[1:]) {
		t.Errorf("last two: %q", got)
	}
	if got := read(0); len(got) != 0 {
		t.Errorf("none: %q", got)
	}
	w.mu.Lock()
	w.rotate()
	w.mu.Unlock()
	fmt.Fprint(w.stream("stdout"), "four\n")
	if got := read(-1); !slices.Equal(got, append(all, "stdout:four\n")) {
		t.Errorf("over a rotation: %q", got)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.logs(), logFile), []byte("{\"stream\":\"std\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(-1); !slices.Equal(got, all) {
		t.Errorf("with a damaged line: %q", got)
	}
}

// Follow returns everything that is written while it waits, over a rotation too, and ends with the sandbox.
func TestLogsFollow(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	d, lock, err := create(h.home, newSpec(t, "worker"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := openLogs(d.logs())
	if err != nil {
		t.Fatal(err)
	}
	sb, err := h.Get("worker")
	if err != nil {
		t.Fatal(err)
	}
	const lines = 200
	got, done := 0, make(chan error, 1)
	go func() {
		done <- sb.Logs(context.Background(), -1, true, func(l LogLine) error {
			if want := fmt.Sprintf("%d\n", got); string(l.Log) != want {
				return fmt.Errorf("got %q, want %q", l.Log, want)
			}
			got++
			return nil
		})
	}()
	for i := range lines {
		fmt.Fprintf(w.stream("stdout"), "%d\n", i)
		if i == lines/2 {
			time.Sleep(3 * followEvery)
			w.mu.Lock()
			w.rotate()
			w.mu.Unlock()
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if err := <-done; err != nil || got != lines {
		t.Errorf("followed %d of %d lines: %v", got, lines, err)
	}
}
