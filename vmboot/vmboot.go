// Package vmboot boots microVMs whose root filesystem comes over vhost-user-fs, and runs programs in them.
//
// A VM is a QEMU process that ends with its parent, with its context or when it is closed, whichever is first.
// Everything in the guest is hostile: what the agent says is bounded and checked, and trusted for nothing but the
// guest's own output and exit status.
package vmboot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/microsandbox/msb-fs/vmboot/usernet"
)

// Config describes a VM. Kernel and FSSocket are needed; everything else has a default.
type Config struct {
	Kernel    *Kernel
	Accel     string // "kvm" or "tcg", as ChooseAccel says; "" is tcg, which works everywhere
	CPUs      int    // 0 is 1
	MemoryMiB int    // 0 is 512
	FSSocket  string // vhost-user-fs socket of the root filesystem
	FSQueues  int    // request queues the server at FSSocket has; 0 is one per CPU
	Mounts    []Mount
	Disks     []string         // files that the guest has as virtio disks, in this order, for reading only; Kernel.Modules has their driver where that is a module
	Network   *usernet.Network // nil is no network but lo. Start takes it over: it is closed when the VM has ended.
	QEMU      string           // program; "" is cloud-hypervisor of PATH if that will do, else qemu-system-x86_64
	// Privileged keeps a VMM that root starts running as root, where it would become a user of its own.
	Privileged bool
	RunDir     string // for the sockets a VMM needs; "" is a temporary directory
}

// Mount is a further filesystem of the guest, served by the host.
type Mount struct {
	Socket   string // vhost-user-fs socket
	Target   string // path in the guest
	File     string // the one file of it that Target shows; "" is the whole filesystem
	ReadOnly bool   // the guest's word; a server that means it refuses writes itself
}

// DefaultMemoryMiB is the memory of a VM that asks for none.
const DefaultMemoryMiB = 512

func (c *Config) complete() error {
	if c.Kernel == nil {
		return fmt.Errorf("boot: %w: run `msb-launch setup`", ErrNoKernel)
	}
	if c.FSSocket == "" {
		return errors.New("boot: no socket of a root filesystem was given")
	}
	if c.Accel == "" {
		c.Accel = AccelTCG
	}
	if c.CPUs <= 0 {
		c.CPUs = 1
	}
	if c.MemoryMiB <= 0 {
		c.MemoryMiB = DefaultMemoryMiB
	}
	if c.FSQueues <= 0 {
		c.FSQueues = c.CPUs
	}
	return nil
}

// VM is a running machine. Its methods may be called concurrently.
type VM struct {
	config  Config
	started time.Time
	console *tail // what the guest's kernel says
	stderr  *tail // what QEMU says
	process *os.Process

	unlimited error // what the VMM could not be limited in, and why; set before Start returns
	monitor   monitor

	heard    sync.Once
	heardErr error

	agentOnce sync.Once
	agentDone chan struct{}
	session   *yamux.Session
	agentErr  error
	agentConn net.Conn

	done chan struct{}
	mu   sync.Mutex
	// guarded by mu
	err     error
	closing bool
}

// Start starts a VM and returns when its process runs, long before the guest does. Cancelling ctx kills it.
func Start(ctx context.Context, c Config) (_ *VM, err error) {
	defer func() {
		if err != nil && c.Network != nil {
			c.Network.Close()
		}
	}()
	if err := c.complete(); err != nil {
		return nil, err
	}
	l, err := chooseVMM(&c).launch(&c)
	if err != nil {
		return nil, err
	}
	return start(ctx, c, l)
}

// start carries out l.
func start(ctx context.Context, c Config, l *launch) (*VM, error) {
	if err := ctx.Err(); err != nil {
		l.abandon()
		return nil, err
	}
	vm := &VM{
		config: c, started: time.Now(),
		console: newTail(64 << 10), stderr: newTail(16 << 10),
		agentConn: l.agent, agentDone: make(chan struct{}), done: make(chan struct{}),
		monitor: l.monitor,
	}
	cmd := exec.Command(l.program, l.args...)
	cmd.Stdout, cmd.Stderr = vm.console, vm.stderr
	cmd.ExtraFiles = l.files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Credential: l.credential}
	running := make(chan error, 1)
	go vm.supervise(ctx, cmd, running)
	if err := <-running; err != nil {
		l.abandon()
		return nil, fmt.Errorf("start %s: %w", l.program, err)
	}
	l.closeFiles()
	return vm, nil
}

// supervise is the one goroutine that owns the process. The kernel sends the death signal when the thread that
// forked ends, not the process, so this goroutine keeps its thread.
func (vm *VM) supervise(ctx context.Context, cmd *exec.Cmd, running chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	if err != nil && cmd.SysProcAttr.Credential != nil {
		// Root that is not all-powerful, or a program that is for root alone.
		again := exec.Command(cmd.Path, cmd.Args[1:]...)
		again.Stdout, again.Stderr, again.ExtraFiles, again.SysProcAttr = cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.SysProcAttr
		again.SysProcAttr.Credential = nil
		cmd = again
		err = cmd.Start()
	}
	if err != nil {
		running <- err
		return
	}
	vm.process = cmd.Process
	var unlimited func()
	unlimited, vm.unlimited = confine(cmd.Process.Pid, &vm.config)
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	running <- nil
	err = cmd.Wait()
	stop()
	unlimited()
	vm.mu.Lock()
	switch {
	case ctx.Err() != nil:
		vm.err = ctx.Err()
	case vm.closing:
	case err != nil:
		vm.err = fmt.Errorf("the virtual machine ended: %w%s", err, vm.Explain())
	}
	vm.mu.Unlock()
	vm.agentConn.Close()
	vm.monitor.close()
	if vm.config.Network != nil {
		vm.config.Network.Close()
	}
	close(vm.done)
}

// socketPair returns a connection and the file that is its other end, for a child.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// Done is closed when the VM's process has ended.
func (vm *VM) Done() <-chan struct{} { return vm.done }

// Err says why the VM ended: nil while it runs, after Close, and where the guest switched itself off.
func (vm *VM) Err() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.err
}

// Pid returns the process id of the VM's process.
func (vm *VM) Pid() int { return vm.process.Pid }

// Unlimited says which of the VMM's resources could not be limited by control groups, and why; nil where all are.
func (vm *VM) Unlimited() error { return vm.unlimited }

// Console returns the end of what the guest's kernel has said, at most 64 KiB. It comes from the guest.
func (vm *VM) Console() string { return vm.console.String() }

// Explain returns what is known about a failed boot, beginning with a newline, or "".
func (vm *VM) Explain() string {
	var b strings.Builder
	if said := strings.TrimSpace(vm.stderr.String()); said != "" {
		b.WriteString("\nqemu: " + said)
		for _, h := range hints {
			if strings.Contains(said, h.said) {
				b.WriteString("\n" + h.advice)
			}
		}
	}
	log := printable(vm.console.String())
	if lines := strings.Split(strings.TrimSpace(log), "\n"); log != "" {
		b.WriteString("\nlast lines of the guest's kernel:")
		for _, line := range lines[max(0, len(lines)-15):] {
			b.WriteString("\n  " + line)
		}
		for _, h := range hints {
			if strings.Contains(log, h.said) {
				b.WriteString("\n" + h.advice)
			}
		}
	}
	return b.String()
}

// hints say what to check when the kernel or QEMU says something.
var hints = []struct{ said, advice string }{
	{"Unable to mount root fs", "the kernel did not start the guest agent from its initramfs: is CONFIG_BLK_DEV_INITRD set? `msb-launch setup` gets a kernel that has it"},
	{"Cannot allocate memory", "the host has too little free memory for this guest: give it less with --memory"},
	{"Out of memory", "the guest has too little memory: give it more with --memory"},
	{"Could not access KVM kernel module", "this user may not open /dev/kvm: add it to the group kvm, or use --accel tcg"},
	{"failed to initialize kvm", "KVM does not work here: use --accel tcg"},
}

// printable keeps a hostile guest from driving the terminal of who reads its log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || (r >= ' ' && r != 0x7f && !(r >= 0x80 && r < 0xa0)) {
			return r
		}
		return -1
	}, s)
}

// Kill ends the VM at once and waits until nothing of it is left.
func (vm *VM) Kill() {
	vm.setClosing()
	vm.process.Kill()
	<-vm.done
	<-vm.release()
}

// Close ends the VM in order: every process in the guest gets SIGTERM and, after grace, SIGKILL, filesystems are
// synced, the machine is switched off. Where that has not happened when ctx ends, the VM is killed and ctx's
// error returned. Nothing of the VM is left afterwards. Calling it again does nothing.
func (vm *VM) Close(ctx context.Context, grace time.Duration) error {
	defer vm.Kill()
	select {
	case <-vm.done:
		return nil
	default:
	}
	vm.setClosing()
	if err := vm.shutdown(ctx, grace); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("shut the sandbox down: %w", ctx.Err())
		}
		return err
	}
	vm.monitor.quit()
	select {
	case <-vm.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shut the sandbox down: %w", ctx.Err())
	}
}

func (vm *VM) shutdown(ctx context.Context, grace time.Duration) error {
	agent, err := vm.Agent(ctx, Setup{})
	if err != nil {
		return err
	}
	return agent.shutdown(ctx, grace)
}

func (vm *VM) setClosing() {
	vm.mu.Lock()
	vm.closing = true
	vm.mu.Unlock()
}
