package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/microsandbox/msb-fs/vmboot/agentproto"
)

// server runs the processes the host asks for.
type server struct {
	reaper *reaper
	ready  chan struct{} // closed once processes can be started, or never will be able to
	broken error         // why not; set before ready is closed

	mu      sync.Mutex
	streams map[agentproto.Header]chan *yamux.Stream // data streams on their way to their process
}

func newServer(r *reaper) *server {
	return &server{reaper: r, ready: make(chan struct{}), streams: make(map[agentproto.Header]chan *yamux.Stream)}
}

// begin lets processes be started, or says why they cannot be.
func (s *server) begin(err error) {
	s.broken = err
	close(s.ready)
}

// serve returns after a Shutdown has been obeyed, or when the host is gone.
func (s *server) serve(port *os.File) error {
	session, err := yamux.Server(agentproto.Coalesce(port), agentproto.SessionConfig())
	if err != nil {
		return err
	}
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("connection to the host: %w", err)
		}
		h, err := agentproto.ReadHeader(stream)
		if err != nil {
			stream.Close()
			continue
		}
		switch h.Kind {
		case agentproto.Control:
			go s.control(h.Process, stream)
		case agentproto.Power:
			return s.shutdown(session, stream)
		default:
			s.rendezvous(h) <- stream
		}
	}
}

// rendezvous returns the channel on which the stream with header h goes from serve to its process.
func (s *server) rendezvous(h agentproto.Header) chan *yamux.Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.streams[h]
	if !ok {
		c = make(chan *yamux.Stream, 1)
		s.streams[h] = c
	}
	return c
}

// take waits for the data stream with header h, which the host opens at the same time as the process's Control.
func (s *server) take(h agentproto.Header) *yamux.Stream {
	stream := <-s.rendezvous(h)
	s.mu.Lock()
	delete(s.streams, h)
	s.mu.Unlock()
	return stream
}

// control is the life of one process. A host that goes away takes the process with it.
func (s *server) control(number uint32, stream *yamux.Stream) {
	defer stream.Close()
	var first agentproto.Request
	if err := agentproto.ReadFrame(stream, agentproto.MaxRequest, &first); err != nil || first.Start == nil {
		return
	}
	io3 := stdio{}
	if first.Start.Stdin {
		io3.in = s.take(agentproto.Header{Kind: agentproto.Stdin, Process: number})
	}
	io3.out = s.take(agentproto.Header{Kind: agentproto.Stdout, Process: number})
	if !first.Start.TTY {
		io3.err = s.take(agentproto.Header{Kind: agentproto.Stderr, Process: number})
	}
	p, failure := s.start(first.Start, io3)
	if failure != nil {
		io3.close()
		agentproto.WriteFrame(stream, &agentproto.Reply{Exit: failure})
		return
	}
	agentproto.WriteFrame(stream, &agentproto.Reply{Started: p.pid})
	go s.obey(stream, p)
	exit := p.wait()
	agentproto.WriteFrame(stream, &agentproto.Reply{Exit: &exit})
}

// obey passes the host's signals and window sizes on until the stream ends.
func (s *server) obey(stream *yamux.Stream, p *process) {
	for {
		var r agentproto.Request
		if err := agentproto.ReadFrame(stream, agentproto.MaxRequest, &r); err != nil {
			s.reaper.signal(p.pid, syscall.SIGKILL)
			return
		}
		switch {
		case r.Signal != 0:
			s.reaper.signal(p.pid, syscall.Signal(r.Signal))
		case r.Resize != nil:
			p.resize(*r.Resize)
		}
	}
}

// shutdown ends every process, first politely, writes everything back and tells the host, which may then switch
// the machine off without waiting for the guest to find out how.
func (s *server) shutdown(session *yamux.Session, stream *yamux.Stream) error {
	var order agentproto.Shutdown
	if err := agentproto.ReadFrame(stream, agentproto.MaxRequest, &order); err != nil {
		return err
	}
	// Signals to -1 reach every process but this one.
	syscall.Kill(-1, syscall.SIGTERM)
	for end := time.Now().Add(time.Duration(order.GraceMS) * time.Millisecond); time.Now().Before(end) && othersRun(); {
		time.Sleep(5 * time.Millisecond)
	}
	syscall.Kill(-1, syscall.SIGKILL)
	syscall.Sync()
	err := agentproto.WriteFrame(stream, &agentproto.Reply{})
	stream.Close()
	// The answer has left when the session has been closed in order.
	session.Close()
	return err
}

// othersRun says whether signals to -1 would reach anybody.
func othersRun() bool { return syscall.Kill(-1, 0) == nil }
