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

	"github.com/microsandbox/msb-fs/vmboot"
)

// controlRequest is the line that a connection to a running sandbox's control socket begins with.
type controlRequest struct {
	Op    string        `json:"op"`              // opStream: what follows is a stream to the guest's agent; opStop: end it
	Grace time.Duration `json:"grace,omitempty"` // of opStop: between SIGTERM and SIGKILL
}

const (
	opStream = "stream"
	opStop   = "stop"
)

// controlLine bounds a controlRequest, bytes.
const controlLine = 4096

// control answers those who want something of a running sandbox.
type control struct {
	signals chan os.Signal // for the command
	vm      *vmboot.VM
	ln      net.Listener
	ended   chan struct{} // closed by close
	serving sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func (h *Host) controlSocket(id string) (string, error) {
	run, err := h.home.Run()
	return filepath.Join(run, "ctl-"+id+".sock"), err
}

// control listens for those who want something of s, which runs on m.
func (h *Host) control(s *Spec, m *machine) (*control, error) {
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
	c := &control{signals: make(chan os.Signal, 1), vm: m.vm, ln: ln, ended: make(chan struct{}), conns: map[net.Conn]bool{}}
	c.serving.Go(c.accept)
	return c, nil
}

// close hangs up on everybody and returns when nobody is served any more.
func (c *control) close() {
	close(c.ended)
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
		select {
		case <-c.ended: // close has hung up on those it knew; it would wait for this one for ever
			c.mu.Unlock()
			conn.Close()
			return
		default:
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
		c.stop(req.Grace)
	}
}

// stop asks the command to end, kills it after grace, and returns when the sandbox ends.
func (c *control) stop(grace time.Duration) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case c.signals <- s:
		case <-c.ended:
			return
		}
		timer := time.NewTimer(grace)
		select {
		case <-timer.C:
		case <-c.ended:
			timer.Stop()
			return
		}
	}
	<-c.ended
}

// splice connects conn, whose bytes after the request are in r, with a stream to the guest's agent until both directions
// have ended, or the sandbox has.
func (c *control) splice(conn net.Conn, r io.Reader) {
	stream, err := c.vm.OpenStream(context.Background())
	if err != nil {
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(stream, r)
		closeWrite(stream)
	})
	finished := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-c.ended:
			past := time.Unix(1, 0)
			stream.SetDeadline(past)
			conn.SetDeadline(past)
		case <-finished:
		}
	})
	io.Copy(conn, stream)
	closeWrite(conn)
	up.Wait()
	close(finished)
	watch.Wait()
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
