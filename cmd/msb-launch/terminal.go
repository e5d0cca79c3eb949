package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/microsandbox/msb-fs/vmboot"
)

// terminal is the user's, in raw mode while a command has one in the sandbox. Its zero value is none.
type terminal struct {
	resize  chan vmboot.Size // the window's size, now and whenever it changes; nil for none
	restore func()
}

// openTerminal takes over the terminal that is standard input, if want is true.
func openTerminal(want bool) (terminal, error) {
	none := terminal{restore: func() {}}
	if !want {
		return none, nil
	}
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return none, fmt.Errorf("--tty: standard input is not a terminal")
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return none, fmt.Errorf("--tty: %w", err)
	}
	t := terminal{resize: make(chan vmboot.Size, 1)}
	if cols, rows, err := term.GetSize(fd); err == nil {
		t.resize <- vmboot.Size{Rows: uint16(rows), Cols: uint16(cols)}
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-changed:
			case <-stop:
				return
			}
			if cols, rows, err := term.GetSize(fd); err == nil {
				select {
				case t.resize <- vmboot.Size{Rows: uint16(rows), Cols: uint16(cols)}:
				case <-stop:
					return
				}
			}
		}
	}()
	t.restore = func() {
		signal.Stop(changed)
		close(stop)
		<-stopped
		term.Restore(fd, old)
	}
	return t, nil
}
