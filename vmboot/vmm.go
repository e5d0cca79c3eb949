package vmboot

import (
	"net"
	"os"
	"syscall"
)

// vmm is a program that runs virtual machines.
type vmm interface {
	// lacks says what the program cannot give c; nil where it can give all.
	lacks(c *Config) error
	// launch returns how the program is started for c, which is complete. Nothing of it is left when it is closed.
	launch(c *Config) (*launch, error)
}

// launch is a VMM's process that is to be started, and how it is spoken to.
type launch struct {
	program string
	args    []string
	files   []*os.File // that the process inherits, from descriptor 3 on; closed once it runs
	agent   net.Conn   // to the guest's agent
	monitor monitor
	// credential is who the process runs as; nil is the caller. Where the caller may not make others so, it runs as the caller.
	credential *syscall.Credential
}

// monitor is a way to speak to a VMM that runs.
type monitor interface {
	// quit asks the VMM to end without a word to the guest.
	quit()
	// close lets go of everything.
	close()
}

// add makes f one of the files that the process inherits.
func (l *launch) add(f *os.File) { l.files = append(l.files, f) }

func (l *launch) closeFiles() {
	for _, f := range l.files {
		f.Close()
	}
}

// abandon is for a launch that is not carried out.
func (l *launch) abandon() {
	l.closeFiles()
	if l.monitor != nil {
		l.monitor.close()
	}
	if l.agent != nil {
		l.agent.Close()
	}
}

// chooseVMM returns what is to run c: cloud-hypervisor, which has less to start, where it is installed and can give all that c
// wants, else QEMU.
func chooseVMM(c *Config) vmm {
	if c.QEMU == "" {
		if ch, err := findCloudHypervisor(); err == nil && ch.lacks(c) == nil {
			return ch
		}
	}
	return qemu{program: c.QEMU}
}
