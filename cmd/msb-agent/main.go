// Command msb-agent is process 1 of a sandbox: it makes the image's root filesystem a running system, starts the
// processes the host asks for and ends the machine. It comes in an initramfs and is never part of the image.
// Everything it is told comes over one virtio-serial port; see package agentproto.
package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/vmboot/tarcopy"
)

func main() {
	if os.Getpid() != 1 {
		if err := copyFiles(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "msb-agent:", err)
	}
	powerOff()
}

// copyFiles is what the host has this program do as a process of its own: one end of a copy into or out of the guest.
func copyFiles(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "pack":
		return tarcopy.Pack(os.Stdout, args[1])
	case len(args) == 2 && args[0] == "unpack":
		return tarcopy.Unpack(os.Stdin, args[1], "")
	}
	return errors.New("msb-agent is the first process of a sandbox and does nothing elsewhere")
}

// run returns when the machine is to be switched off.
func run() error {
	syscall.Umask(0o022)
	if err := mountEarly(); err != nil {
		return err
	}
	// The root filesystem may be long in coming: its image may still be on its way. The host hears of us before.
	root := make(chan error, 1)
	go func() { root <- errors.Join(mountRoot(), loadModules()) }()
	port, err := openPort(10 * time.Second)
	if err != nil {
		return err
	}
	setup, err := greet(port)
	if err != nil {
		return fmt.Errorf("greet the host: %w", err)
	}
	r := newReaper()
	go r.loop()
	s := newServer(r)
	go func() {
		err := <-root
		if err == nil {
			err = enterRoot()
		}
		if err == nil {
			err = applySetup(setup)
		}
		clock := newClock() // before anybody can see that the machine is up
		s.begin(err)
		clock.keep()
	}()
	return s.serve(port)
}

// powerOff does not return: process 1 must not end, the kernel would panic.
func powerOff() {
	syscall.Sync()
	for {
		// With QEMU's -no-reboot a reset ends the machine too, should ACPI be absent.
		syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
		syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
		time.Sleep(time.Second)
	}
}
