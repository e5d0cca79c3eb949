package vmboot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/vmboot/usernet"
	"go.uber.org/goleak"
)

func ended(t *testing.T, vm *VM) {
	t.Helper()
	select {
	case <-vm.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the machine still runs")
	}
	if err := syscall.Kill(vm.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("its process: %v", err)
	}
}

func TestGuestSwitchesItselfOff(t *testing.T) {
	vm, agent := boot(t, testConfig(t), Setup{})
	if _, err := agent.Exec(t.Context(), Process{Args: []string{"sh", "-c", "echo b > /proc/sysrq-trigger; reboot -f"}}); err == nil {
		t.Error("a program ended in order while its machine was switched off")
	}
	ended(t, vm)
	if err := vm.Err(); err != nil {
		t.Errorf("a guest that ends itself is no failure: %v", err)
	}
	if _, err := agent.Exec(t.Context(), Process{Args: []string{"true"}}); err == nil {
		t.Error("a machine that is off runs programs")
	}
}

func TestMachineIsKilled(t *testing.T) {
	c := testConfig(t)
	for name, kill := range map[string]struct {
		do   func(vm *VM, cancel func())
		want string
	}{
		"by Kill":      {func(vm *VM, _ func()) { vm.Kill(); vm.Kill() }, ""},
		"by context":   {func(_ *VM, cancel func()) { cancel() }, "context canceled"},
		"from outside": {func(vm *VM, _ func()) { syscall.Kill(vm.Pid(), syscall.SIGKILL) }, "signal: killed"},
		"by an impatient Close": {func(vm *VM, _ func()) {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			if err := vm.Close(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Close: %v", err)
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := c
			c.FSSocket = serveDir(t, guestImage(t))
			before := goleak.IgnoreCurrent()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			vm, err := Start(ctx, c)
			if err != nil {
				t.Fatal(err)
			}
			waiting := make(chan error, 1)
			go func() {
				_, err := vm.Agent(t.Context(), Setup{})
				waiting <- err
			}()
			kill.do(vm, cancel)
			ended(t, vm)
			if err := vm.Err(); (err == nil) != (kill.want == "") || (err != nil && !strings.Contains(err.Error(), kill.want)) {
				t.Errorf("the machine ended for %v, want %q", err, kill.want)
			}
			if err := <-waiting; err == nil {
				t.Error("a killed machine has an agent")
			}
			vm.Kill()
			goleak.VerifyNone(t, before)
		})
	}
}

// Machines that are killed at any moment of their boot leave nothing behind.
func TestManyAreKilled(t *testing.T) {
	c := testConfig(t)
	before := goleak.IgnoreCurrent()
	files := openFiles(t)
	for i := range 50 {
		c.FSSocket = filepath.Join(t.TempDir(), "nobody.sock")
		ln, err := net.Listen("unix", c.FSSocket)
		if err != nil {
			t.Fatal(err)
		}
		if c.Network, err = usernet.New(usernet.Options{Policy: usernet.Public}); err != nil {
			t.Fatal(err)
		}
		vm, err := Start(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i%10) * time.Millisecond)
		vm.Kill()
		ended(t, vm)
		ln.Close()
	}
	goleak.VerifyNone(t, before)
	if now := openFiles(t); now > files {
		t.Errorf("%d open files, %d before", now, files)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// The machine ends with the process that started it, however that ends.
func TestMachineEndsWithItsParent(t *testing.T) {
	const child = "MSB_TEST_START_A_MACHINE"
	c := testConfig(t)
	if socket := os.Getenv(child); socket != "" {
		c.FSSocket = socket
		vm, err := Start(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("\npid", vm.Pid())
		<-vm.Done()
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestMachineEndsWithItsParent$")
	cmd.Env = append(os.Environ(), child+"="+serveDir(t, guestImage(t)))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for s := bufio.NewScanner(out); pid == 0 && s.Scan(); {
		fmt.Sscanf(s.Text(), "pid %d", &pid)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if pid == 0 {
		t.Fatal("the child started no machine")
	}
	for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && strings.Contains(string(state), ") Z ") {
			return // it has ended; nobody waits for it here
		}
		if time.Now().After(end) {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the machine outlives its parent")
		}
	}
}

func TestStartExplains(t *testing.T) {
	c := testConfig(t)
	kernel := c.Kernel
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no qemu":   {func(c *Config) { c.QEMU = "/nonexistent/qemu" }, "apt-get install qemu-system-x86"},
		"no kernel": {func(c *Config) { c.Kernel = nil }, "msb-launch setup"},
		"no root":   {func(c *Config) { c.FSSocket = "" }, "no socket"},
	} {
		bad := Config{Kernel: kernel, FSSocket: "/nonexistent"}
		c.change(&bad)
		if _, err := Start(t.Context(), bad); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	nobody := filepath.Join(t.TempDir(), "nobody.sock")
	ln, err := net.Listen("unix", nobody)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	// A program that is none, and one that ends at once.
	for program, want := range map[string]string{"/etc/passwd": "not in PATH", "/bin/true": "ended before its agent"} {
		bad := Config{Kernel: kernel, FSSocket: nobody, QEMU: program}
		vm, err := Start(t.Context(), bad)
		if err == nil {
			_, err = vm.Agent(t.Context(), Setup{})
			vm.Kill()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", program, err)
		}
	}
	// Nobody is at the socket, or hangs up on QEMU.
	c.FSSocket = "/nonexistent/fs.sock"
	if _, err := Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "/nonexistent/fs.sock") {
		t.Errorf("%v", err)
	}
	c.FSSocket = nobody
	vm, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	ln.Close()
	if _, err = vm.Agent(t.Context(), Setup{}); err == nil {
		t.Fatal("an agent without a root")
	}
	if first, rest, _ := strings.Cut(err.Error(), "\n"); !strings.HasPrefix(first, "boot: ") || !strings.Contains(rest, "qemu") {
		t.Errorf("%q, %q", first, rest)
	}
	if _, err := FindKernel("/nonexistent/vmlinuz"); !errors.Is(err, ErrNoKernel) || !strings.Contains(err.Error(), "msb-launch setup") {
		t.Errorf("%v", err)
	}
	notKernel := t.TempDir() + "/vmlinuz"
	if err := os.WriteFile(notKernel, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FindKernel(notKernel); err == nil || !strings.Contains(err.Error(), "neither a vmlinux nor a bzImage") {
		t.Errorf("%v", err)
	}
}
