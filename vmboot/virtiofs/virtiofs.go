// Package virtiofs shows a FUSE file system to a virtual machine: it is the back end of a vhost-user-fs device, all of it
// in this process, with the requests answered by a fuse.RawFileSystem.
//
// The front end is the VMM (QEMU's vhost-user-fs-pci). It connects to a unix socket and hands over the guest's memory and
// one eventfd pair per virtqueue; from then on the guest puts FUSE requests into rings in its memory and this package
// answers them in place. Formats: the vhost-user protocol (QEMU, docs/interop/vhost-user.rst) and virtio 1.2, sections 2.7
// (split virtqueues) and 5.11 (file system device).
//
// The guest is taken for hostile. Every ring index, address and length is checked against the memory table and the queue's
// size; descriptors and requests are copied before they are looked at, so that a guest that changes them meanwhile
// changes nothing; what a file system sees is private memory, except for the bulk data of READ and WRITE. A guest can
// waste its own requests and nothing else.
//
// Locks, in the order they are taken: run.mu, queue.mu. Neither is held across a call into the file system.
package virtiofs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Options are the settings of one Serve. The zero value works.
type Options struct {
	// Queues is how many request queues the front end may use, beside the high-priority one. One that is not used costs
	// next to nothing. 0 means 254, which is the most that there may be.
	Queues int

	// InFlight bounds the requests of the guest that are worked on at the same time, over all its queues. Further ones
	// stay in the ring. Each queue in use may have one at least. 0 means 64.
	InFlight int

	// FUSE are the settings negotiated with the guest's kernel, as for a mount. Only what FUSE_INIT and the handling of
	// requests need is used. A nil Logger prints nothing.
	FUSE *fuse.MountOptions

	// OnInit is called when the guest sends its first FUSE_INIT, which is when its kernel is up. It must not block.
	OnInit func()

	// OnFault is told of what a well-behaved guest and file system never do: broken rings, requests that lie, panics in
	// the file system. It may be called from several goroutines at once, at most 16 times in all, and must not block.
	OnFault func(error)
}

const (
	maxQueues       = 254 // and the high-priority queue; a front end names them in 8 bits
	defaultInFlight = 64
	maxFaults       = 16
)

// Serve accepts one front end on ln and serves it until it goes away. The handshake is answered at once; requests of the
// guest wait for open, whose context ends when Serve does. The file system stays the caller's: Serve does not close it.
//
// Serve returns nil when the front end has disconnected, ctx's error when ctx was cancelled, open's error when that
// failed, and an error that says what was wrong when the front end broke the protocol. By then every goroutine it started
// has ended and every descriptor and mapping it was given has been released. It does not close ln: a front end that
// connects again is served by another Serve.
func Serve(ctx context.Context, ln *net.UnixListener, open func(context.Context) (fuse.RawFileSystem, error), o Options) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	s := newServer(o)
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		raw, err := open(inner)
		if err != nil {
			cancel(err)
			return
		}
		s.provide(raw)
	}()
	err := serveOne(inner, ln, s)
	cause := context.Cause(inner)
	cancel(nil)
	<-opened

	if ctx.Err() != nil {
		return ctx.Err()
	}
	if cause != nil {
		return cause
	}
	return err
}

// serveOne accepts a connection and serves it until it ends or ctx is done.
func serveOne(ctx context.Context, ln *net.UnixListener, s *server) error {
	conn, err := accept(ctx, ln)
	if err != nil {
		return err
	}
	defer conn.Close()
	// A deadline in the past ends reads that are under way as well, and unlike Close it cannot hit a reused descriptor.
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	d := newDevice(s)
	defer d.close()
	c := &channel{conn: conn}
	for {
		m, err := c.receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("vhost-user: %w", err)
		}
		err = d.carryOut(m)
		m.closeFiles()
		if replyErr := c.answer(m, err); err == nil && replyErr != nil {
			// The front end may be killed at any time, also between its request and our answer.
			return nil
		}
		if err != nil {
			return fmt.Errorf("vhost-user %s: %w", m.name(), err)
		}
	}
}

// accept waits for one connection. The listener is as before when it returns.
func accept(ctx context.Context, ln *net.UnixListener) (*net.UnixConn, error) {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		ln.SetDeadline(time.Unix(1, 0))
	})
	conn, err := ln.AcceptUnix()
	if !stop() {
		<-woken
		ln.SetDeadline(time.Time{})
		if err == nil {
			conn.Close()
		}
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("vhost-user: %w", err)
	}
	return conn, nil
}
