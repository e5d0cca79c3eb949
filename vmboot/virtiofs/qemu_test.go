package virtiofs_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/microsandbox/msb-fs/vmboot"
	"github.com/microsandbox/msb-fs/vmboot/virtiofs"
)

// guestInit reboots the first time. The second time it reads files over and over, so that there are always requests in
// progress, checks what it reads, and powers the machine off.
const guestInit = `#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc none /proc
busybox mount -t devtmpfs none /dev
if [ ! -e /rebooted ]; then
	echo x > /rebooted
	echo REBOOTS
	busybox reboot -f
fi
want=$(busybox sha256sum < /data/0)
echo READS
i=0
while [ $i -lt 12 ]; do
	for f in /data/0 /data/1 /data/2 /data/3; do
		busybox sha256sum < $f > /dev/shm.$((i%2)) &
	done
	wait
	got=$(busybox sha256sum < /data/$((i%4)))
	[ "$got" = "$want" ] || echo WRONG "$got"
	echo 3 > /proc/sys/vm/drop_caches
	echo ROUND $i
	i=$((i+1))
done
echo ENDS
busybox poweroff -f
`

// A machine is a QEMU on a directory served by this process.
type machine struct {
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	qmp    net.Conn
	served chan error
	inits  *atomic.Int64
}

// startMachine starts a machine that reboots first, or not.
func startMachine(t *testing.T, reboots bool) *machine {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no qemu-system-x86_64: apt-get install qemu-system-x86")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("no static /bin/busybox for a guest: apt-get install busybox-static")
	}
	kernel, err := vmboot.FindKernel("")
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"bin", "proc", "dev", "data"} {
		if err := os.MkdirAll(filepath.Join(dir, "root", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data := []byte(strings.Repeat("a guest is hostile\n", 100_000))
	for name, content := range map[string][]byte{
		"bin/busybox": busybox, "init": []byte(guestInit), "data/0": data, "data/1": data, "data/2": data, "data/3": data,
	} {
		if err := os.WriteFile(filepath.Join(dir, "root", name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if !reboots {
		if err := os.WriteFile(filepath.Join(dir, "root", "rebooted"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := gofs.NewLoopbackRoot(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	raw := gofs.NewNodeFS(root, &gofs.Options{})
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "fs"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	m := &machine{served: make(chan error, 1), inits: new(atomic.Int64)}
	open := func(context.Context) (fuse.RawFileSystem, error) { return raw, nil }
	go func() {
		m.served <- virtiofs.Serve(t.Context(), ln, open, virtiofs.Options{
			FUSE:    &fuse.MountOptions{MaxWrite: 512 << 10},
			OnInit:  func() { m.inits.Add(1) },
			OnFault: func(err error) { t.Errorf("fault: %v", err) },
		})
	}()

	m.cmd = exec.Command(qemu, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", "2", "-m", "256M", "-machine", "q35,memory-backend=mem", "-object", "memory-backend-memfd,id=mem,share=on,size=256M",
		"-chardev", "socket,id=fs,path="+ln.Addr().String(),
		"-device", "vhost-user-fs-pci,chardev=fs,tag=root,num-request-queues=2,queue-size=256",
		"-kernel", kernel.Path, "-append", "root=root rootfstype=virtiofs rw init=/init console=ttyS0 quiet panic=-1",
		"-qmp", "unix:"+filepath.Join(dir, "qmp")+",server=on,wait=off", "-serial", "stdio")
	m.cmd.Stderr = os.Stderr
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.lines = bufio.NewScanner(out)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(3*time.Minute, func() { m.cmd.Process.Kill() })
	t.Cleanup(func() {
		stuck.Stop()
		m.cmd.Process.Kill()
		m.cmd.Wait()
	})
	for range 200 {
		if m.qmp, err = net.Dial("unix", filepath.Join(dir, "qmp")); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.qmp.Close() })
	go io.Copy(io.Discard, m.qmp) // the answers are not of interest: what the guest does shows what was done
	m.execute(t, "qmp_capabilities")
	return m
}

func (m *machine) execute(t *testing.T, command string) {
	t.Helper()
	if err := json.NewEncoder(m.qmp).Encode(map[string]string{"execute": command}); err != nil {
		t.Errorf("%s: %v", command, err)
	}
}

// expect waits for a line of the guest that begins with want.
func (m *machine) expect(t *testing.T, want string) {
	t.Helper()
	var seen []string
	for m.lines.Scan() {
		line := m.lines.Text()
		if strings.Contains(line, "WRONG") {
			t.Error(line)
		}
		if strings.HasPrefix(line, want) {
			return
		}
		seen = append(seen, line)
	}
	t.Fatalf("the guest has not said %q, but:\n%s", want, strings.Join(seen, "\n"))
}

// ends expects that Serve returns nil now that the machine has gone.
func (m *machine) ends(t *testing.T) {
	t.Helper()
	select {
	case err := <-m.served:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(30 * time.Second):
		panic("Serve does not return")
	}
	if b, err := os.ReadFile("/proc/self/maps"); err != nil || strings.Contains(string(b), "memory-backend-memfd") {
		t.Errorf("guest memory is still mapped (%v)", err)
	}
}

func TestQEMU(t *testing.T) {
	t.Run("reboot and pauses", func(t *testing.T) {
		m := startMachine(t, true)
		m.expect(t, "REBOOTS")
		m.expect(t, "READS")
		for i := range 12 {
			m.expect(t, fmt.Sprint("ROUND ", i))
			m.execute(t, "stop")
			m.execute(t, "cont")
		}
		m.expect(t, "ENDS")
		m.ends(t)
		if err := m.cmd.Wait(); err != nil {
			t.Errorf("QEMU: %v", err)
		}
		if n := m.inits.Load(); n != 1 {
			t.Errorf("OnInit was called %d times", n)
		}
	})
	t.Run("kill", func(t *testing.T) {
		m := startMachine(t, false)
		m.expect(t, "READS")
		m.cmd.Process.Kill()
		m.ends(t)
	})
}
