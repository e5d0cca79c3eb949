package vmboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/vmboot/agentproto"
)

// Process is a program to run in a guest. Args are needed; the zero value of everything else works.
type Process struct {
	Args    []string
	Env     []string // K=V; PATH, HOME, HOSTNAME and TERM are added where they are absent
	Dir     string   // "" is /
	MakeDir bool     // makes Dir where the image lacks it
	Dirs    []string // further directories that are made where the image lacks them
	User    string   // user[:group], names or numbers, resolved in the image; "" is root
	Groups  []string // further groups
	Umask   *uint32  // nil is 022
	Rlimits []Rlimit
	TTY     bool // the program gets a terminal, and all its output comes on Stdout
	Size    Size // of the terminal

	Stdin   io.Reader        // nil is /dev/null. A Read that is pending when the program ends is not waited for.
	Stdout  io.Writer        // nil discards
	Stderr  io.Writer        // nil discards
	Signals <-chan os.Signal // passed on to the program; may be nil
	Resize  <-chan Size      // passed on to the terminal; may be nil
	Started func()           // called once the program has been started; may be nil
}

// Size is a terminal's size in characters.
type Size = agentproto.Size

// Rlimit is a resource limit of a process.
type Rlimit = agentproto.Rlimit

// Status is how a program ended.
type Status struct {
	Code   int            // exit status as a shell would report it: 128+n for signal n, 126 and 127 where it did not start
	Signal syscall.Signal // the signal that ended it, or 0
}

// StartError says why a program could not be started: it is the guest's word. Exec's Status then has the code.
type StartError struct {
	Code   int // 126 or 127
	Reason string
}

func (e *StartError) Error() string { return e.Reason }

const (
	// killPatience is how long a killed program may take to be reported.
	killPatience = 5 * time.Second
	// drainPatience is how long a stream of a program that has ended may go on without a byte or its end.
	drainPatience = 10 * time.Second
)

// Exec runs p and returns when it has ended and all its output has been written. When ctx ends the program is
// killed and ctx's error returned. The error is a *StartError where the program could not be started.
func (a *Agent) Exec(ctx context.Context, p Process) (Status, error) {
	if p.TTY && p.Size == (Size{}) {
		// A program that asks at once is to hear the window's size, not of its first change.
		select {
		case p.Size = <-p.Resize:
		default:
		}
	}
	e := &execution{number: rand.Uint32()}
	defer e.close()
	if err := e.open(ctx, a, &p); err != nil {
		return Status{}, err
	}
	if err := agentproto.WriteFrame(e.control, &agentproto.Request{Start: p.start()}); err != nil {
		return Status{}, fmt.Errorf("reach the guest's agent: %w", err)
	}
	if p.Stdin != nil {
		e.feed(p.Stdin)
	}
	e.collect(e.stdout, p.Stdout)
	if e.stderr != nil {
		e.collect(e.stderr, p.Stderr)
	}
	ended := make(chan struct{})
	e.helpers.Go(func() { e.forward(ctx, &p, ended) })
	exit, err := e.await(p.Started)
	close(ended)
	patience := drainPatience
	if err != nil {
		patience = 0 // a guest that has said so little will say no more
	}
	e.drain(patience)
	e.helpers.Wait()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return Status{}, fmt.Errorf("run %s in the sandbox: %w", p.Args[0], err)
	}
	return status(exit, ctx)
}

// status turns what the guest says into what a shell could say.
func status(exit *agentproto.Exit, ctx context.Context) (Status, error) {
	s := Status{Code: exit.Code & 0xff, Signal: syscall.Signal(exit.Signal & 0x7f)}
	if exit.Error != "" {
		s.Code = max(s.Code, 126)
		return s, &StartError{Code: s.Code, Reason: printable(exit.Error)}
	}
	return s, ctx.Err()
}

func (p *Process) start() *agentproto.Process {
	return &agentproto.Process{
		Args: p.Args, Env: p.Env, Dir: p.Dir, MakeDir: p.MakeDir, Dirs: p.Dirs, User: p.User, Groups: p.Groups,
		Umask: p.Umask, Rlimits: p.Rlimits, TTY: p.TTY, Size: p.Size, Stdin: p.Stdin != nil,
	}
}

// execution is the host's side of one process.
type execution struct {
	number                         uint32
	control, stdin, stdout, stderr net.Conn // stdin and stderr may be nil

	ended    atomic.Bool    // the guest has reported the end, or will not
	patience atomic.Int64   // from then on, for each read
	outputs  sync.WaitGroup // the copies of stdout and stderr
	helpers  sync.WaitGroup // forward
}

func (e *execution) open(ctx context.Context, a *Agent, p *Process) error {
	if len(p.Args) == 0 {
		return errors.New("run in the sandbox: no command was given")
	}
	for _, s := range []struct {
		kind agentproto.Kind
		conn *net.Conn
		need bool
	}{
		{agentproto.Control, &e.control, true},
		{agentproto.Stdin, &e.stdin, p.Stdin != nil},
		{agentproto.Stdout, &e.stdout, true},
		{agentproto.Stderr, &e.stderr, !p.TTY},
	} {
		if !s.need {
			continue
		}
		conn, err := a.stream(ctx, s.kind, e.number)
		if err != nil {
			return err
		}
		*s.conn = conn
	}
	return nil
}

// feed copies from to the process's standard input and then says that this was all. Its goroutines end with the
// stream, but for a Read of from that does not return: nothing can interrupt an arbitrary Reader.
func (e *execution) feed(from io.Reader) {
	go func() {
		io.Copy(onlyWriter{e.stdin}, from)
		closeWrite(e.stdin)
	}()
	go func() {
		// The guest closes its half when nobody reads the input any more: a Write that waits for room is over.
		io.Copy(io.Discard, e.stdin)
		e.stdin.SetWriteDeadline(time.Unix(1, 0))
	}()
}

// collect copies the process's output on stream to w.
func (e *execution) collect(stream net.Conn, w io.Writer) {
	if w == nil {
		w = io.Discard
	}
	e.outputs.Go(func() {
		defer closeWrite(stream)
		buf := make([]byte, 64<<10)
		for {
			if e.ended.Load() {
				stream.SetReadDeadline(time.Now().Add(time.Duration(e.patience.Load())))
			}
			n, err := stream.Read(buf)
			if n > 0 && w != nil {
				if _, werr := w.Write(buf[:n]); werr != nil {
					// The guest learns that nobody reads, and its process gets SIGPIPE. What is under way is let pass.
					closeWrite(stream)
					w = nil
				}
			}
			if err != nil {
				return
			}
		}
	})
}

// forward passes signals and window sizes on until the process has ended; when ctx ends first it kills.
func (e *execution) forward(ctx context.Context, p *Process, ended <-chan struct{}) {
	signals, sizes, done := p.Signals, p.Resize, ctx.Done()
	for {
		var r agentproto.Request
		select {
		case <-ended:
			return
		case s, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			if n, ok := s.(syscall.Signal); ok {
				r.Signal = int(n)
			}
		case size, ok := <-sizes:
			if !ok {
				sizes = nil
				continue
			}
			r.Resize = &size
		case <-done:
			done = nil
			r.Signal = int(syscall.SIGKILL)
			e.control.SetReadDeadline(time.Now().Add(killPatience))
			e.control.SetWriteDeadline(time.Now().Add(killPatience))
		}
		if agentproto.WriteFrame(e.control, &r) != nil {
			return // await sees it too
		}
	}
}

// await reads what the agent says of the process until it has ended.
func (e *execution) await(started func()) (*agentproto.Exit, error) {
	for {
		var r agentproto.Reply
		if err := agentproto.ReadFrame(e.control, agentproto.MaxReply, &r); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				err = errors.New("the sandbox ended before the program did")
			}
			return nil, err
		}
		if r.Exit != nil {
			return r.Exit, nil
		}
		if r.Started != 0 && started != nil {
			started()
			started = nil
		}
	}
}

// drain waits for the outputs' ends, which an honest agent has sent before the exit.
func (e *execution) drain(patience time.Duration) {
	e.patience.Store(int64(patience))
	e.ended.Store(true)
	for _, stream := range []net.Conn{e.stdout, e.stderr} {
		if stream != nil {
			stream.SetReadDeadline(time.Now().Add(patience))
		}
	}
	e.outputs.Wait()
}

func (e *execution) close() {
	for _, stream := range []net.Conn{e.control, e.stdin, e.stdout, e.stderr} {
		if stream != nil {
			stream.SetReadDeadline(time.Unix(1, 0))
			stream.Close()
		}
	}
}

// closeWrite closes a stream's write half: what CloseWrite is to a socket, Close is to a yamux stream.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	conn.Close()
}

// onlyWriter hides ReadFrom, which for a socket may want a descriptor that from has not.
type onlyWriter struct{ io.Writer }
