package vmboot

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"

	"github.com/microsandbox/msb-fs/vmboot/agentproto"
	"github.com/microsandbox/msb-fs/vmboot/usernet"
	"golang.org/x/sys/unix"
)

// ErrNoQEMU is wrapped by errors about a missing QEMU.
var ErrNoQEMU = errors.New("no QEMU")

// ErrNoServer is wrapped by errors about a socket of a file system on which nobody listens.
var ErrNoServer = errors.New("connect to the filesystem server")

const defaultQEMU = "qemu-system-x86_64"

func findQEMU(program string) (string, error) {
	if program == "" {
		program = defaultQEMU
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%w: %s is not in PATH: install it (Debian: apt-get install qemu-system-x86)", ErrNoQEMU, program)
	}
	return path, nil
}

// Descriptors that QEMU inherits, in the order of launchWith.
const (
	qmpFD       = 3
	agentFD     = 4
	initramfsFD = 5
	kernelFD    = 6
	fsFD        = 7 // the root's, those of the mounts after it, and then the network and the disks
)

// qemu runs machines by QEMU, which can do all there is.
type qemu struct {
	program string // "" is qemu-system-x86_64 of PATH
}

func (qemu) lacks(*Config) error { return nil }

func (q qemu) launch(c *Config) (_ *launch, err error) {
	l, err := q.launchBare(c, qemuArgs(c))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.abandon()
		}
	}()
	sockets := []string{c.FSSocket}
	for _, m := range c.Mounts {
		sockets = append(sockets, m.Socket)
	}
	for _, path := range sockets {
		conn, err := connectFile(path)
		if err != nil {
			return nil, err
		}
		l.add(conn)
	}
	if c.Network != nil {
		network, err := dupFile(c.Network.File())
		if err != nil {
			return nil, err
		}
		l.add(network)
	}
	for _, path := range c.Disks {
		disk, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open a disk of the guest: %w", err)
		}
		l.add(disk)
	}
	return l, nil
}

// launchBare is the part of a launch that a machine without filesystem and network has too. All that QEMU uses it is given open,
// so that it can run as somebody who may open none of it.
func (q qemu) launchBare(c *Config, args []string) (_ *launch, err error) {
	l := &launch{args: args}
	defer func() {
		if err != nil {
			l.abandon()
		}
	}()
	if l.program, err = findQEMU(q.program); err != nil {
		return nil, err
	}
	control, theirs, err := socketPair("qmp")
	if err != nil {
		return nil, err
	}
	l.add(theirs)
	l.monitor = newQMP(control)
	agent, theirs, err := socketPair("agent")
	if err != nil {
		return nil, err
	}
	l.add(theirs)
	l.agent = agent
	ramfs, err := initramfs(c)
	if err != nil {
		return nil, err
	}
	l.add(ramfs)
	kernel, err := os.Open(c.Kernel.Path)
	if err != nil {
		return nil, fmt.Errorf("open the guest kernel: %w", err)
	}
	l.add(kernel)
	if !c.Privileged && readable(kernel) { // it is opened again, by QEMU
		l.credential = unprivileged(rand.Int(), c.Accel == AccelKVM)
	}
	return l, nil
}

// connectFile connects to a unix socket.
func connectFile(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		unix.Close(fd)
	}
	return nil, fmt.Errorf("%w on %s: %w", ErrNoServer, path, err)
}

// dupFile returns another descriptor of what f has open.
func dupFile(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// qemuArgs renders c as QEMU's command line. docs/boot.md says which choices were measured.
func qemuArgs(c *Config) []string {
	a := append(machineArgs(c), fsArgs("root", fsFD, agentproto.RootTag, c.FSQueues)...)
	for i := range c.Mounts {
		a = append(a, fsArgs("mount"+strconv.Itoa(i), fsFD+1+i, mountTag(i), 1)...)
	}
	next := fsFD + 1 + len(c.Mounts)
	if c.Network != nil {
		a = append(a,
			"-netdev", "stream,id=network,server=off,addr.type=fd,addr.str="+strconv.Itoa(next),
			"-device", "virtio-net-pci,netdev=network,romfile=,mac="+usernet.MAC)
		next++
	}
	for i := range c.Disks {
		a = append(a, diskArgs(i, next+i)...)
	}
	return a
}

// diskArgs are a disk whose file is open for reading as fd.
func diskArgs(i, fd int) []string {
	return []string{
		"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, i),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=disk%d,read-only=on,file.driver=file,file.filename=/dev/fdset/%d,file.locking=off", i, i),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i),
	}
}

// machineArgs are the machine without filesystem and network, which is also what an accelerator is tried with.
func machineArgs(c *Config) []string {
	memory := strconv.Itoa(c.MemoryMiB) + "M"
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", "q35,vmport=off,usb=off,smm=off,sata=off,hpet=off,memory-backend=mem",
		"-object", "memory-backend-memfd,id=mem,share=on,size=" + memory,
		"-m", memory, "-smp", strconv.Itoa(c.CPUs),
		"-kernel", "/proc/self/fd/" + strconv.Itoa(kernelFD), "-append", kernelParameters,
		"-initrd", "/proc/self/fd/" + strconv.Itoa(initramfsFD),
		"-chardev", "socket,id=qmp,fd=" + strconv.Itoa(qmpFD), "-mon", "chardev=qmp,mode=control",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=agent,fd=" + strconv.Itoa(agentFD),
		"-device", "virtio-serial-pci,max_ports=2",
		"-device", "virtserialport,chardev=agent,name=" + agentproto.Port,
	}
	if c.Accel == AccelKVM {
		return append(a, "-accel", "kvm", "-cpu", "host")
	}
	// Told of fast string instructions the kernel clears and copies memory by single bytes, each of which is emulated.
	return append(a, "-accel", "tcg,thread=multi", "-cpu", "max,erms=off")
}

// kernelParameters is the guest kernel's command line. A panic resets the machine, which ends it. The kernel's tests of its
// own cryptography are left out: they are a fifth of the boot.
const kernelParameters = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests"

func fsArgs(id string, fd int, tag string, queues int) []string {
	return []string{
		"-chardev", "socket,id=" + id + ",fd=" + strconv.Itoa(fd),
		"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=%s,tag=%s,num-request-queues=%d,queue-size=1024", id, tag, queues),
	}
}

func mountTag(i int) string { return "msb" + strconv.Itoa(i) }
