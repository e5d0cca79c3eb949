package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// trial is one cold start of an image by one system.
type trial struct {
	dir   string // empty at first, for everything the system keeps
	ref   string
	img   *image
	bin   string // of this project's programs
	trace string // directory for what eBPF sees of a host mount; "" is not to look

	after []func() // called when everything else has ended
	n     int      // of the sandboxes that share dir, from 0
	stay  bool     // the program goes on until it is told to end

	start time.Time
	ready chan struct{} // closed at the program's line

	mu      sync.Mutex
	marks   map[string]float64 // seconds since start
	line    []byte             // of the output, as far as it has come
	atReady func()
}

// Names of marks.
const (
	markResolved = "resolved" // the reference is a digest
	markMounted  = "mounted"  // there is a root directory to look into
	markVM       = "vm up"    // the guest's agent has spoken
	markOutput   = "output"   // the program's first byte
	markReady    = "ready"    // its line
)

// mark notes that something has happened now.
func (t *trial) mark(name string) { t.markAt(name, time.Since(t.start).Seconds()) }

func (t *trial) markAt(name string, seconds float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.marks[name]; !ok {
		t.marks[name] = seconds
	}
}

func (t *trial) at(name string) float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.marks[name]
}

// Write takes the program's standard output.
func (t *trial) Write(p []byte) (int, error) {
	if len(p) > 0 {
		t.mark(markOutput)
		if t.img.ready == "" {
			t.isReady()
		}
	}
	for _, b := range p {
		if b != '\n' {
			if len(t.line) < 4096 {
				t.line = append(t.line, b)
			}
			continue
		}
		if bytes.HasPrefix(t.line, []byte(t.img.ready)) {
			t.isReady()
		}
		t.line = t.line[:0]
	}
	return len(p), nil
}

// isReady notes that the program is ready, once.
func (t *trial) isReady() {
	if t.at(markReady) > 0 {
		return
	}
	t.mark(markReady)
	t.atReady()
	close(t.ready)
}

// errNotReady is of a program that goes on and does not say that it is ready.
var errNotReady = errors.New("the program has not printed the line that --ready names")

// grace is how long a program that is ready may go on until it is ended.
const grace = 10 * time.Second

// patience ends when the program has been ready for long enough.
func (t *trial) patience() <-chan time.Time {
	if t.stay {
		return nil
	}
	return time.After(grace)
}

// program runs the command that is the image's program, until it ends by itself or has been ready for a while.
func (t *trial) program(ctx context.Context, cmd *exec.Cmd) error {
	var said tail
	cmd.Stdout, cmd.Stderr = t, &said
	cmd.WaitDelay = 2 * time.Second // what it leaves behind may hold its output open
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		t.end(cmd, ended)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("%w after %s; it said: %s", errNotReady, time.Since(t.start).Round(time.Second), said.String())
		}
		return ctx.Err()
	case <-t.ready:
		select {
		case err = <-ended:
		case <-ctx.Done():
			err = t.end(cmd, ended)
		case <-t.patience():
			t.end(cmd, ended)
			return ctx.Err()
		}
	}
	if err == nil && t.img.ready == "" {
		t.isReady() // it had nothing to say
	}
	if t.at(markReady) > 0 {
		return ctx.Err() // what it does afterwards is not what is measured
	}
	if err == nil {
		err = errors.New("it ended")
	}
	return fmt.Errorf("%s: %w before it was ready: %s", filepath.Base(cmd.Path), err, said.String())
}

// end ends cmd, gently first.
func (t *trial) end(cmd *exec.Cmd, ended <-chan error) error {
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		return err
	case <-time.After(5 * time.Second):
	}
	cmd.Process.Kill()
	return <-ended
}

// tail keeps the last of what a program says.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf); n > 2000 {
		t.buf = t.buf[n-1000:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(strings.TrimSpace(string(t.buf)), "\n", "; ")
}

// do runs a command to its end; what it says on standard error is in the error.
func do(cmd *exec.Cmd, out *bytes.Buffer) error {
	var said tail
	if out != nil {
		cmd.Stdout = out
	}
	cmd.Stderr = &said
	// Not SIGKILL: programs that mount must unmount.
	if cmd.Cancel != nil {
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = 10 * time.Second
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, said.String())
	}
	return nil
}

// daemon is a program that runs beside a trial.
type daemon struct {
	cmd  *exec.Cmd
	said tail
	done chan struct{}
}

// startDaemon starts cmd and returns when the file at socket is there.
func startDaemon(ctx context.Context, cmd *exec.Cmd, socket string) (*daemon, error) {
	d := &daemon{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &d.said, &d.said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(d.done)
		cmd.Wait()
	}()
	for deadline := time.Now().Add(20 * time.Second); !have(socket); {
		select {
		case <-d.done:
			return nil, fmt.Errorf("%s ended: %s", filepath.Base(cmd.Path), d.said.String())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), d.stop())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("%s does not listen: %s", filepath.Base(cmd.Path), d.said.String()), d.stop())
		}
	}
	return d, nil
}

// stop ends the daemon and waits for it.
func (d *daemon) stop() error {
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		d.cmd.Process.Kill()
		<-d.done
	}
	return nil
}
