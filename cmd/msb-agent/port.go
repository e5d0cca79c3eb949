package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/vmboot/agentproto"
	"golang.org/x/sys/unix"
)

// openPort opens the agent's virtio-serial port. The kernel may still be setting it up when process 1 begins.
func openPort(patience time.Duration) (*os.File, error) {
	deadline := time.Now().Add(patience)
	if device := portParameter(); device != "" {
		return openConsole(filepath.Join("/dev", device))
	}
	for {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err == nil && string(bytes.TrimSpace(text)) == agentproto.Port {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no virtio-serial port is called %s: the machine has no way to the host", agentproto.Port)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// portParameter is the device that the kernel's command line names in place of a virtio-serial port, "" where it names none.
func portParameter() string {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return ""
	}
	for _, word := range strings.Fields(string(line)) {
		if device, ok := strings.CutPrefix(word, agentproto.PortParameter+"="); ok {
			return filepath.Base(device)
		}
	}
	return ""
}

// openConsole opens a console and has it pass every byte on as it is.
func openConsole(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	raw := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B38400}
	raw.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &raw); err != nil {
		f.Close()
		return nil, fmt.Errorf("make %s pass bytes on as they are: %w", path, err)
	}
	return f, nil
}

// greet says hello and returns what the host answers.
func greet(port *os.File) (agentproto.Setup, error) {
	var setup agentproto.Setup
	err := agentproto.WriteFrame(port, &agentproto.Hello{Magic: agentproto.Magic, Version: agentproto.Version, Kernel: kernelRelease()})
	if err == nil {
		err = agentproto.ReadFrame(port, agentproto.MaxRequest, &setup)
	}
	if err == nil && setup.Version != agentproto.Version {
		err = fmt.Errorf("the host speaks version %d, this agent version %d", setup.Version, agentproto.Version)
	}
	return setup, err
}

func kernelRelease() string {
	var u syscall.Utsname
	if syscall.Uname(&u) != nil {
		return ""
	}
	release := make([]byte, 0, len(u.Release))
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	return string(release)
}
