package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/microsandbox/msb-fs/vmboot/agentproto"
	"golang.org/x/sys/unix"
)

// ends are both ends of what becomes a process's descriptors 0, 1 and 2. The parent's are non-blocking, so that
// the runtime waits for many of them in few threads; the child's block, as programs expect.
type ends struct {
	childIn, childOut, childErr int
	stdin, stdout, stderr       *os.File // the parent's; nil where there is none
	tty                         *os.File // master of the terminal, then also stdin and stdout
	ttyName                     string
}

func openEnds(p *agentproto.Process) (*ends, error) {
	e := &ends{childIn: -1, childOut: -1, childErr: -1}
	if p.TTY {
		return e, e.openTTY(p.Size)
	}
	err := e.openPipes(p.Stdin)
	if err != nil {
		e.closeChild()
		e.closeParent()
	}
	return e, err
}

func (e *ends) openPipes(stdin bool) error {
	var err error
	if stdin {
		if e.childIn, e.stdin, err = pipe(true); err != nil {
			return err
		}
	} else if e.childIn, err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if e.childOut, e.stdout, err = pipe(false); err != nil {
		return err
	}
	e.childErr, e.stderr, err = pipe(false)
	return err
}

// pipe returns a pipe's blocking end for a child, which reads it if childReads, and our non-blocking end.
func pipe(childReads bool) (child int, parent *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, fmt.Errorf("make a pipe: %w", err)
	}
	child, ours := fds[1], fds[0]
	if childReads {
		child, ours = fds[0], fds[1]
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		return -1, nil, err
	}
	return child, os.NewFile(uintptr(ours), "pipe"), nil
}

func (e *ends) openTTY(size agentproto.Size) error {
	master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	e.tty = os.NewFile(uintptr(master), "terminal")
	e.stdin, e.stdout = e.tty, e.tty
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock the terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("name the terminal: %w", err)
	}
	e.ttyName = "/dev/pts/" + strconv.Itoa(number)
	if e.childIn, err = unix.Open(e.ttyName, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open the terminal: %w", err)
	}
	e.childOut, e.childErr = e.childIn, e.childIn
	if size.Rows > 0 && size.Cols > 0 {
		return unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	}
	return nil
}

func (e *ends) child() []uintptr {
	return []uintptr{uintptr(e.childIn), uintptr(e.childOut), uintptr(e.childErr)}
}

// closeChild closes the child's ends here, without which no end of file would ever come.
func (e *ends) closeChild() {
	for _, fd := range map[int]int{e.childIn: e.childIn, e.childOut: e.childOut, e.childErr: e.childErr} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (e *ends) closeParent() {
	for _, f := range []*os.File{e.stdin, e.stdout, e.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// connect begins to copy between the process and the host.
func (p *process) connect(e *ends, streams stdio) {
	if streams.in != nil {
		p.stdin = &inbound{from: streams.in, to: e.stdin, tty: e.tty != nil}
		p.copies.Go(p.stdin.run)
	}
	for _, o := range []*outbound{{from: e.stdout, to: streams.out, tty: e.tty != nil}, {from: e.stderr, to: streams.err}} {
		if o.from != nil {
			p.outputs = append(p.outputs, o)
			p.copies.Go(o.run)
			go o.watch()
		}
	}
}

// copyBuffer is a pipe's capacity.
const copyBuffer = 64 << 10

// inbound copies from the host to a process.
type inbound struct {
	from *yamux.Stream
	to   *os.File
	tty  bool
}

func (i *inbound) run() {
	_, err := io.CopyBuffer(onlyWriter{i.to}, onlyReader{i.from}, make([]byte, copyBuffer))
	switch {
	case !i.tty:
		i.to.Close()
	case err == nil:
		i.to.Write([]byte{4}) // VEOF: how a terminal says end of file
	}
	// Closing our half tells the host that nobody reads what it would still send.
	i.from.Close()
}

// finish makes run return although the host has not closed its half, or a descendant holds the pipe.
func (i *inbound) finish() {
	past := time.Unix(1, 0)
	i.from.SetReadDeadline(past)
	if !i.tty {
		i.to.SetWriteDeadline(past)
	}
}

// outbound copies from a process to the host.
type outbound struct {
	from *os.File
	to   *yamux.Stream
	tty  bool
	over atomic.Bool // the process has ended
}

func (o *outbound) run() {
	defer o.to.Close()
	buf := make([]byte, copyBuffer)
	for {
		n, err := o.from.Read(buf)
		if n > 0 {
			if _, werr := o.to.Write(buf[:n]); werr != nil {
				o.from.Close()
				return
			}
		}
		if os.IsTimeout(err) {
			o.drain(buf)
			return
		}
		if err != nil { // end of file; EIO on a terminal whose last user has gone
			if !o.tty {
				o.from.Close()
			}
			return
		}
	}
}

// drain copies what is in the pipe after the process has ended. A descendant may hold the other end and go on
// writing: that output has no reader any more, and is thrown away rather than answered with SIGPIPE.
func (o *outbound) drain(buf []byte) {
	raw, err := o.from.SyscallConn()
	if err != nil {
		return
	}
	for total := 0; total < 16*copyBuffer; {
		n := 0
		raw.Control(func(fd uintptr) { n, err = syscall.Read(int(fd), buf) })
		if err != nil || n <= 0 {
			break
		}
		total += n
		if _, err := o.to.Write(buf[:n]); err != nil {
			break
		}
	}
	if o.tty {
		return
	}
	o.from.SetReadDeadline(time.Time{})
	go func() {
		io.Copy(io.Discard, onlyReader{o.from})
		o.from.Close()
	}()
}

// watch sees the host close its half while the process runs: nobody reads the output, and whoever writes it gets
// SIGPIPE, as from any reader that has gone. The host closes every stream in the end, so watch ends too.
func (o *outbound) watch() {
	io.Copy(io.Discard, onlyReader{o.to})
	if !o.tty && !o.over.Load() {
		o.from.Close()
		o.to.SetWriteDeadline(time.Unix(1, 0))
	}
}

// finish makes run go over to drain: the process has ended, and all it wrote is in the pipe.
func (o *outbound) finish() {
	o.over.Store(true)
	o.from.SetReadDeadline(time.Unix(1, 0))
}

// onlyReader and onlyWriter hide ReadFrom and WriteTo, which would not use our buffer.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// setSize does without Fd, which would make the terminal blocking.
func setSize(tty *os.File, size agentproto.Size) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}
