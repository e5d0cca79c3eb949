package msb

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
)

// A supervisor that answers nothing, as one that SIGSTOP has stopped, is found out, and by its number.
func TestSilentSupervisor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("unix", path) // taken by the kernel
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errSilent)
	defer cancel()
	if err := heard(ctx, conn); !errors.Is(err, errSilent) {
		t.Errorf("%v, want errSilent", err)
	}
	if pid, err := peer(conn); err != nil || pid != os.Getpid() {
		t.Errorf("%d listens, not %d; %v", pid, os.Getpid(), err)
	}
}

// One that answers has heard; so has one that ends at once.
func TestSupervisorThatAnswers(t *testing.T) {
	for name, answer := range map[string]func(net.Conn){
		"says so": func(c net.Conn) { c.Write([]byte{'\n'}) },
		"ends":    func(c net.Conn) { c.Close() },
	} {
		near, far := net.Pipe()
		go answer(far)
		if err := heard(t.Context(), near); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		near.Close()
	}
}

// What a supervisor that was killed has left goes with its sandbox.
func TestRemoveTakesTheSocketAlong(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	_, lock, err := create(h.home, newSpec(t, "worker"))
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	sb, err := h.Get("worker")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := h.controlSocket(sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sb.Remove(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("its socket is still there")
	}
}
