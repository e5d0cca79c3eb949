package vmboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/microsandbox/msb-fs/vmboot/agentproto"
	"github.com/microsandbox/msb-fs/vmboot/usernet"
)

// Agent runs programs in a guest. Its methods may be called concurrently.
type Agent struct {
	open func(context.Context) (net.Conn, error)
}

// NewAgent returns an Agent that reaches the guest by streams from open, each as VM.OpenStream gives them: for a
// process that does not own the VM but is connected to one that does. Closing a stream's write half must arrive
// as such at the guest, and the other way round.
func NewAgent(open func(context.Context) (net.Conn, error)) *Agent { return &Agent{open: open} }

// Setup is what a guest becomes before its first process. The zero value is a guest with no name.
type Setup struct {
	Hostname string
	Hosts    []string // further lines of /etc/hosts
	Tmpfs    []Tmpfs
	Offline  bool // no network but lo, even if the VM has one
}

// Tmpfs is a filesystem in the guest's memory.
type Tmpfs struct {
	Target  string
	SizeMiB int // 0 is half of the guest's memory
}

// Agent waits until the guest's agent is up, gives it s and returns it. There is one per VM: the first call's s
// counts, and every call returns the same. Where ctx ends first, or the VM does, the error explains as far as is
// known why.
func (vm *VM) Agent(ctx context.Context, s Setup) (*Agent, error) {
	vm.agentOnce.Do(func() {
		go func() {
			defer close(vm.agentDone)
			vm.session, vm.agentErr = vm.greet(s)
		}()
	})
	if err := vm.awaitAgent(ctx); err != nil {
		return nil, err
	}
	return NewAgent(vm.OpenStream), nil
}

// Booted waits until the guest's agent is up, for a VM that is told later, by Agent, what it is to be. The error explains as
// Agent's does.
func (vm *VM) Booted(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- vm.hear() }() // ends with the connection, which ends with the VM
	select {
	case err := <-done:
		if err != nil {
			vm.process.Kill()
			<-vm.done
			return fmt.Errorf("boot: %w%s", err, vm.Explain())
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("boot: the guest's agent has not come up after %s: %w%s",
			time.Since(vm.started).Round(time.Millisecond), ctx.Err(), vm.Explain())
	}
}

// hear reads the agent's hello, once.
func (vm *VM) hear() error {
	vm.heard.Do(func() { vm.heardErr = hear(vm.agentConn) })
	return vm.heardErr
}

func (vm *VM) awaitAgent(ctx context.Context) error {
	select {
	case <-vm.agentDone:
	case <-ctx.Done():
		return fmt.Errorf("boot: the guest's agent has not come up after %s: %w%s",
			time.Since(vm.started).Round(time.Millisecond), ctx.Err(), vm.Explain())
	}
	if vm.agentErr == nil {
		return nil
	}
	<-vm.done
	if err := vm.Err(); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	return fmt.Errorf("boot: %w%s", vm.agentErr, vm.Explain())
}

// OpenStream returns a new stream to the guest's agent, which must be up or coming up: the bytes of an
// agentproto.Header are expected on it next. Close closes the write half only; reading goes on until the agent has
// closed its own.
func (vm *VM) OpenStream(ctx context.Context) (net.Conn, error) {
	if err := vm.awaitAgent(ctx); err != nil {
		return nil, err
	}
	stream, err := vm.session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("reach the guest's agent: %w", err)
	}
	return stream, nil
}

// release closes the agent's connection and returns the channel that says that greet is over.
func (vm *VM) release() <-chan struct{} {
	vm.agentOnce.Do(func() {
		vm.agentErr = errors.New("the virtual machine has ended")
		close(vm.agentDone)
	})
	<-vm.agentDone
	if vm.session != nil {
		vm.session.Close()
	}
	return vm.agentDone
}

// greet does the handshake. It ends with the connection, which ends with the VM. A guest that breaks the protocol
// is killed.
func (vm *VM) greet(s Setup) (*yamux.Session, error) {
	setup, err := vm.setup(s)
	if err != nil {
		vm.process.Kill()
		return nil, err
	}
	if err = vm.hear(); err == nil {
		var session *yamux.Session
		if session, err = greet(vm.agentConn, &setup); err == nil {
			return session, nil
		}
	}
	vm.process.Kill()
	return nil, err
}

// hear reads an agent's hello.
func hear(conn net.Conn) error {
	var hello agentproto.Hello
	if err := agentproto.ReadFrame(conn, agentproto.MaxReply, &hello); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			err = errors.New("the virtual machine ended before its agent was up")
		}
		return err
	}
	if hello.Magic != agentproto.Magic || hello.Version != agentproto.Version {
		return fmt.Errorf("the guest's agent speaks another protocol (%.20q version %d, not %q version %d)",
			hello.Magic, hello.Version, agentproto.Magic, agentproto.Version)
	}
	return nil
}

// greet tells an agent that has been heard what its guest is to be, and begins the session with it.
func greet(conn net.Conn, setup *agentproto.Setup) (*yamux.Session, error) {
	setup.Time = time.Now().UnixNano()
	if err := agentproto.WriteFrame(conn, setup); err != nil {
		return nil, fmt.Errorf("greet the guest's agent: %w", err)
	}
	return yamux.Client(agentproto.Coalesce(conn), agentproto.SessionConfig())
}

// setup says what the guest is to be.
func (vm *VM) setup(s Setup) (agentproto.Setup, error) {
	out := agentproto.Setup{Version: agentproto.Version, Hostname: s.Hostname, Hosts: s.Hosts}
	if vm.config.Network != nil && !s.Offline {
		out.Network = &agentproto.Network{
			Interface: "eth0", Address: usernet.Guest + "/24", Gateway: usernet.Gateway,
			DNS: []string{usernet.Gateway}, MTU: usernet.MTU,
		}
	}
	for i, m := range vm.config.Mounts {
		out.Mounts = append(out.Mounts, agentproto.Mount{Type: "virtiofs", Source: mountTag(i), Target: m.Target, File: m.File, ReadOnly: m.ReadOnly})
	}
	for _, t := range s.Tmpfs {
		m := agentproto.Mount{Type: "tmpfs", Source: "tmpfs", Target: t.Target}
		if t.SizeMiB > 0 {
			m.Options = fmt.Sprintf("size=%dm", t.SizeMiB)
		}
		out.Mounts = append(out.Mounts, m)
	}
	// What lies in another comes after it.
	slices.SortStableFunc(out.Mounts, func(a, b agentproto.Mount) int {
		return strings.Count(path.Clean(a.Target), "/") - strings.Count(path.Clean(b.Target), "/")
	})
	return out, nil
}

// shutdown ends everything in the guest and returns when its filesystems have been synced.
func (a *Agent) shutdown(ctx context.Context, grace time.Duration) error {
	stream, err := a.stream(ctx, agentproto.Power, 0)
	if err != nil {
		return err
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.SetReadDeadline(time.Unix(1, 0)) })()
	if err := agentproto.WriteFrame(stream, &agentproto.Shutdown{GraceMS: int(grace.Milliseconds())}); err != nil {
		return err
	}
	var reply agentproto.Reply
	if err := agentproto.ReadFrame(stream, agentproto.MaxReply, &reply); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("shut the guest down: %w", err)
	}
	return nil
}

// stream opens a stream of the given kind.
func (a *Agent) stream(ctx context.Context, kind agentproto.Kind, process uint32) (net.Conn, error) {
	conn, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := (agentproto.Header{Kind: kind, Process: process}).WriteTo(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("reach the guest's agent: %w", err)
	}
	return conn, nil
}
