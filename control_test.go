package msb

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
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
