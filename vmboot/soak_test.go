package vmboot

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/goleak"

	"github.com/microsandbox/msb-fs/vmboot/hostdir"
	"github.com/microsandbox/msb-fs/vmboot/virtiofs"
)

// rounds is how often machines are started and ended: a few times, or MSB_SOAK times for `make soak`.
func rounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("MSB_SOAK")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Guests that are switched off, reboot or are killed in turn, while they read, end with their server, and nothing is left.
func TestEndsInARow(t *testing.T) {
	c := testConfig(t)
	image := guestImage(t)
	before, files := goleak.IgnoreCurrent(), openFiles(t)
	var slowest [3]time.Duration
	for i := range rounds(t) {
		slowest[i%3] = max(slowest[i%3], endOnce(t, c, image, i%3))
	}
	t.Logf("the VMM and the server have ended within: power-off %v, reboot %v, kill %v", slowest[0], slowest[1], slowest[2])
	goleak.VerifyNone(t, before)
	if now := openFiles(t); now > files {
		t.Errorf("%d open files, %d before", now, files)
	}
}

// endOnce starts a machine, ends it in one of three ways and returns how long that took.
func endOnce(t *testing.T, c Config, image string, way int) time.Duration {
	t.Helper()
	f, err := hostdir.Open(image, hostdir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c.FSSocket = filepath.Join(t.TempDir(), "fs.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.FSSocket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		served <- virtiofs.Serve(context.Background(), ln, func(context.Context) (fuse.RawFileSystem, error) { return f, nil },
			virtiofs.Options{FUSE: hostdir.ServerOptions()})
	}()
	vm, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	agent, err := vm.Agent(ctx, Setup{})
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	ran := make(chan error, 1)
	go func() {
		_, err := agent.Exec(ctx, Process{Args: []string{"sh", "-c", []string{
			"while cat /bin/busybox >/dev/null; do :; done & sleep 0.2; poweroff -f",
			"while cat /bin/busybox >/dev/null; do :; done & sleep 0.2; reboot -f",
			"while cat /bin/busybox >/dev/null; do :; done",
		}[way]}, Started: func() { close(started) }})
		ran <- err
	}()
	<-started
	begun := time.Now()
	if way == 2 {
		time.Sleep(200 * time.Millisecond)
		syscall.Kill(vm.Pid(), syscall.SIGKILL)
	}
	ended(t, vm)
	select {
	case err := <-served:
		if err != nil {
			t.Errorf("the server: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the server still serves a machine that has ended")
	}
	took := time.Since(begun) - 200*time.Millisecond // which the guest has slept
	if err := <-ran; err == nil {
		t.Error("a program ended in order while its machine did not")
	}
	return took
}
