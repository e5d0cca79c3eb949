package vmboot

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/microsandbox/msb-fs/vmboot/agentproto"
	"github.com/microsandbox/msb-fs/vmboot/usernet"
)

// ErrNoQEMU is wrapped by errors about a missing QEMU.
var ErrNoQEMU = errors.New("no QEMU")

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

// Descriptors the VMM process inherits; see start.
const (
	qmpFD       = 3
	agentFD     = 4
	initramfsFD = 5
	networkFD   = 6
)

// qemuArgs renders c as QEMU's command line. docs/boot.md says which choices were measured.
func qemuArgs(c *Config) []string {
	a := append(machineArgs(c), fsArgs("root", c.FSSocket, agentproto.RootTag, c.FSQueues)...)
	for i, m := range c.Mounts {
		a = append(a, fsArgs("mount"+strconv.Itoa(i), m.Socket, mountTag(i), 1)...)
	}
	if c.Network != nil {
		a = append(a,
			"-netdev", "stream,id=network,server=off,addr.type=fd,addr.str="+strconv.Itoa(networkFD),
			"-device", "virtio-net-pci,netdev=network,romfile=,mac="+usernet.MAC)
	}
	return a
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
		"-kernel", c.Kernel.Path, "-append", kernelParameters,
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
	return append(a, "-accel", "tcg,thread=multi", "-cpu", "max")
}

// kernelParameters is the guest kernel's command line. A panic resets the machine, which ends it. The kernel's tests of its
// own cryptography are left out: they are a fifth of the boot.
const kernelParameters = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests"

func fsArgs(id, socket, tag string, queues int) []string {
	return []string{
		"-chardev", "socket,id=" + id + ",path=" + escape(socket),
		"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=%s,tag=%s,num-request-queues=%d,queue-size=1024", id, tag, queues),
	}
}

// escape doubles commas, which otherwise end a value in QEMU's option syntax.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

func mountTag(i int) string { return "msb" + strconv.Itoa(i) }
