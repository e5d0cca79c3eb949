package vmboot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/vmboot/usernet"
)

func TestCloudHypervisorArguments(t *testing.T) {
	c := Config{Kernel: &Kernel{Path: "/k/vmlinux"}, Accel: AccelKVM, FSSocket: "/run/fs.sock", CPUs: 2, MemoryMiB: 512, RunDir: "/run",
		Mounts: []Mount{{Socket: "/run/m.sock", Target: "/m"}}}
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	want := `--api-socket path=/run/ch.sock
--kernel /k/vmlinux --initramfs /proc/self/fd/3
--cmdline console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests msb.port=hvc0
--cpus boot=2 --memory size=512M,shared=on
--serial tty --console pty --seccomp true
--fs id=root,tag=msbroot,socket=/run/fs.sock,num_queues=2,queue_size=1024 id=mount0,tag=msb0,socket=/run/m.sock,num_queues=1,queue_size=1024`
	if got := strings.Join(cloudHypervisor{}.args(&c, "/run/ch.sock"), " "); got != strings.ReplaceAll(want, "\n", " ") {
		t.Errorf("%s", got)
	}
}

func TestWhichVMM(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"cloud-hypervisor", defaultQEMU} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		path string
		c    Config
		want string
	}{
		{"kvm", bin, Config{Accel: AccelKVM, RunDir: "/run"}, "vmboot.cloudHypervisor"},
		{"emulated", bin, Config{Accel: AccelTCG, RunDir: "/run"}, "vmboot.qemu"},
		{"with a network", bin, Config{Accel: AccelKVM, RunDir: "/run", Network: &usernet.Network{}}, "vmboot.qemu"},
		{"QEMU asked for", bin, Config{Accel: AccelKVM, RunDir: "/run", QEMU: "qemu"}, "vmboot.qemu"},
		{"not installed", t.TempDir(), Config{Accel: AccelKVM, RunDir: "/run"}, "vmboot.qemu"},
	} {
		t.Setenv("PATH", c.path)
		if got := fmt.Sprintf("%T", chooseVMM(&c.c)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// fakeCloudHypervisor answers the API on socket as cloud-hypervisor does for a machine whose console is the terminal tty, which it
// only has when it is asked the second time. It returns what it was asked.
func fakeCloudHypervisor(t *testing.T, socket, tty string) (asked func() []string) {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var calls []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, r.Method+" "+r.URL.Path)
		switch {
		case r.URL.Path == "/api/v1/vmm.shutdown":
			w.WriteHeader(http.StatusNoContent)
		case len(calls) == 1:
			http.Error(w, "VmNotCreated", http.StatusInternalServerError)
		default:
			json.NewEncoder(w).Encode(map[string]any{"config": map[string]any{"console": map[string]any{"file": tty, "mode": "Pty"}}, "state": "Running"})
		}
	})}
	done := make(chan struct{})
	go func() { server.Serve(ln); close(done) }()
	t.Cleanup(func() { server.Close(); <-done })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return calls
	}
}

func TestCloudHypervisorCalls(t *testing.T) {
	master, tty := openTerminal(t)
	dir := t.TempDir()
	asked := fakeCloudHypervisor(t, filepath.Join(dir, "ch.sock"), tty)
	c := Config{Kernel: &Kernel{Path: "/k/vmlinux"}, Accel: AccelKVM, CPUs: 1, MemoryMiB: 256, FSQueues: 1, RunDir: dir}
	l, err := cloudHypervisor{program: "/bin/true"}.launch(&c)
	if err != nil {
		t.Skip(err) // without an agent
	}
	// Every byte passes as it is, both ways.
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	if _, err := l.agent.Write(all); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(all))
	if _, err := io.ReadFull(master, got); err != nil || !bytes.Equal(got, all) {
		t.Errorf("to the guest came %x, %v", got, err)
	}
	if _, err := master.Write(all); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(l.agent, got); err != nil || !bytes.Equal(got, all) {
		t.Errorf("from the guest came %x, %v", got, err)
	}
	l.monitor.quit()
	l.agent.Close()
	master.Close()
	l.monitor.close()
	l.closeFiles()
	want := "GET /api/v1/vm.info, GET /api/v1/vm.info, PUT /api/v1/vmm.shutdown"
	if calls := strings.Join(asked(), ", "); calls != want {
		t.Errorf("calls %s; want %s", calls, want)
	}
}

// openTerminal makes a pseudo-terminal and returns its master and the path of the other end.
func openTerminal(t *testing.T) (*os.File, string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return master, fmt.Sprintf("/dev/pts/%d", n)
}

func TestOnlyTerminalsAreOpened(t *testing.T) {
	for path, want := range map[string]bool{
		"/dev/pts/7": true, "/dev/pts/ptmx": false, "/dev/pts/": false, "": false, "/dev/pts/../kvm": false, "/dev/pts/1/../../kvm": false,
		"/dev/pts/-1": false, "/etc/passwd": false, "7": false,
	} {
		if isTerminal(path) != want {
			t.Errorf("%q: not %v", path, want)
		}
	}
}
