package msb

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/vmboot"
)

// controlRequest is the line that a connection to a running sandbox's control socket begins with. One that ends the sandbox is
// answered by a byte at once, and by the connection's end when it has been done.
type controlRequest struct {
	Op    string        `json:"op"`              // opStream: what follows is a stream to the guest's agent; opStop, opKill: end it
	Grace time.Duration `json:"grace,omitempty"` // of opStop: between SIGTERM and SIGKILL
}

const (
	opStream = "stream"
	opStop   = "stop"
	opKill   = "kill"
)

// controlPatience is how long a supervisor may take to answer: one that has been stopped (SIGSTOP) never does.
const controlPatience = 20 * time.Second

// killPatience is how long a sandbox may take to end once its command has been killed, before its machine is.
const killPatience = 10 * time.Second

var (
	// errStopped is why a machine ends that does not end by itself when it is told to.
	errStopped = errors.New("the sandbox did not end by itself and was killed")
	// errSilent is why a sandbox cannot be asked to end.
	errSilent = errors.New("the process that supervises it does not answer")
	// errKilled is why a machine ends that nobody wants any more.
	errKilled = errors.New("the sandbox was killed")
)

// controlLine bounds a controlRequest, bytes.
const controlLine = 4096

// control answers those who want something of a sandbox that runs or is being started.
type control struct {
	signals chan os.Signal // for the command; while there is none, they end the start
	kill    context.CancelCauseFunc
	ln      net.Listener
	ctx     context.Context // ended by close
	end     context.CancelFunc
	serving sync.WaitGroup

	up       chan struct{} // closed by begin, after which the following two are set
	vm       *vmboot.VM
	stopping syscall.Signal

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func (h *Host) controlSocket(id string) (string, error) {
	run, err := h.home.Run()
	return filepath.Join(run, "ctl-"+id+".sock"), err
}

// control listens for those who want something of s; kill ends it in whatever state it is.
func (h *Host) control(s *Spec, kill context.CancelCauseFunc) (*control, error) {
	path, err := h.controlSocket(s.ID)
	if err != nil {
		return nil, err
	}
	// Left by a supervisor that was killed: the sandbox's lock says that there is no other.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control sandbox: %w", err)
	}
	ln, err := net.Listen("unix", path) // in a directory that keeps others out
	if err != nil {
		return nil, fmt.Errorf("control sandbox: %w", err)
	}
	c := newControl(ln, kill)
	c.serving.Go(c.accept)
	return c, nil
}

func newControl(ln net.Listener, kill context.CancelCauseFunc) *control {
	c := &control{signals: make(chan os.Signal), kill: kill, ln: ln, up: make(chan struct{}), conns: map[net.Conn]bool{}}
	c.ctx, c.end = context.WithCancel(context.Background())
	return c
}

// begin says that the sandbox is up, on vm, and by which signal its command wants to be asked to end.
func (c *control) begin(vm *vmboot.VM, stopping syscall.Signal) {
	c.vm, c.stopping = vm, stopping
	close(c.up)
}

// close hangs up on everybody and returns when nobody is served any more.
func (c *control) close() {
	c.end()
	c.ln.Close()
	c.mu.Lock()
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.serving.Wait()
}

func (c *control) accept() {
	for {
		conn, err := c.ln.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		if c.ctx.Err() != nil { // close has hung up on those it knew; it would wait for this one for ever
			c.mu.Unlock()
			conn.Close()
			return
		}
		c.conns[conn] = true
		c.mu.Unlock()
		c.serving.Go(func() {
			c.serve(conn)
			conn.Close()
			c.mu.Lock()
			delete(c.conns, conn)
			c.mu.Unlock()
		})
	}
}

func (c *control) serve(conn net.Conn) {
	var req controlRequest
	r := bufio.NewReaderSize(conn, controlLine)
	line, err := r.ReadSlice('\n')
	if err != nil || json.Unmarshal(line, &req) != nil {
		return
	}
	switch req.Op {
	case opStream:
		c.splice(conn, r)
	case opStop:
		conn.Write([]byte{'\n'})
		c.stop(req.Grace)
	case opKill:
		conn.Write([]byte{'\n'})
		c.kill(errKilled)
		<-c.ctx.Done()
	}
}

// stop asks the command to end, kills it after grace, kills the machine where that does not help, and returns when the sandbox
// ends.
func (c *control) stop(grace time.Duration) {
	ask := syscall.SIGTERM
	select {
	case <-c.up:
		ask = c.stopping
	default:
	}
	if c.signal(ask, grace) || c.signal(syscall.SIGKILL, killPatience) {
		return
	}
	c.kill(errStopped)
	<-c.ctx.Done()
}

// signal sends s to the command and tells whether the sandbox has ended within patience. A guest that hangs takes no signal.
func (c *control) signal(s os.Signal, patience time.Duration) (ended bool) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case c.signals <- s:
	case <-c.ctx.Done():
		return true
	case <-timer.C:
		return false
	}
	select {
	case <-c.ctx.Done():
		return true
	case <-timer.C:
		return false
	}
}

// splice connects conn, whose bytes after the request are in r, with a stream to the guest's agent until both directions
// have ended, or the sandbox has.
func (c *control) splice(conn net.Conn, r io.Reader) {
	select {
	case <-c.up:
	case <-c.ctx.Done():
		return
	}
	stream, err := c.vm.OpenStream(c.ctx)
	if err != nil {
		return
	}
	defer context.AfterFunc(c.ctx, func() {
		past := time.Unix(1, 0)
		stream.SetDeadline(past)
		conn.SetDeadline(past)
	})()
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(stream, r)
		closeWrite(stream)
	})
	io.Copy(conn, stream)
	closeWrite(conn)
	up.Wait()
	stream.Close()
}

// closeWrite ends what is sent on conn: yamux streams have only Close for it.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	conn.Close()
}

// dialControl connects to a running sandbox and sends req.
func (h *Host) dialControl(ctx context.Context, s *Spec, req controlRequest) (net.Conn, error) {
	path, err := h.controlSocket(s.ID)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: msb-launch start %s", ErrNotRunning, s.Name, s.Name)
	}
	b, err := json.Marshal(req)
	if err == nil {
		_, err = conn.Write(append(b, '\n'))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("control sandbox %s: %w", s.Name, err)
	}
	return conn, nil
}

// heard returns when the other end of conn has said that it has read a request, or has hung up.
func heard(ctx context.Context, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Read(make([]byte, 1)); err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// peer is the process that listens where conn leads to. It lives: nobody else has its end.
func peer(conn net.Conn) (pid int, err error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return 0, cerr
	}
	if err == nil && cred.Pid <= 1 { // of another PID namespace
		err = errors.New("its number is not known here")
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}
