package msb

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
	"github.com/microsandbox/msb-fs/vmboot/usernet"
)

// Keep is for msb-launch itself, as Pool runs it: it boots a VM as in says, tells out when it is ready and when it has been
// taken, and runs the sandbox that takes it. It ends when in does before that, or ctx.
func (h *Host) Keep(ctx context.Context, in io.Reader, out io.Writer) error {
	orders := json.NewDecoder(in)
	var spec Spec
	if err := orders.Decode(&spec); err != nil {
		return errors.New("keeper is for msb-launch itself: use pool")
	}
	sh, err := newShape(ctx, &spec)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	unused, abandon := context.WithCancel(ctx)
	defer abandon()
	go func() { // ends with its input
		io.Copy(io.Discard, orders.Buffered())
		io.Copy(io.Discard, in)
		abandon()
	}()
	client, err := h.connect(unused)
	if err != nil {
		return err
	}
	defer client.Close()
	m, err := bootUnused(ctx, unused, client, sh)
	if err != nil {
		if unused.Err() != nil {
			return nil
		}
		return err
	}
	k := &keeper{host: h, machine: m, out: out}
	defer func() { m.close(ctx, false) }()
	return k.serve(ctx, unused, sh)
}

// bootUnused boots a VM that has no image yet. unused ends the wait for it.
func bootUnused(ctx, unused context.Context, client *api.Client, sh shape) (_ *machine, err error) {
	kernel, accel, err := sh.spec.engine(ctx)
	if err != nil {
		return nil, err
	}
	var id [6]byte
	rand.Read(id[:])
	m := newMachine(ctx, client, hex.EncodeToString(id[:]), &volumes{cancel: func() {}})
	m.listen(api.SandboxRequest{ID: m.id, Later: true})
	defer func() {
		if err != nil {
			err = errors.Join(m.why(m.ctx, err), m.close(ctx, false))
		}
	}()
	defer context.AfterFunc(unused, func() { m.fail(unused.Err()) })()
	if m.network, err = usernet.New(usernet.Options{}); err != nil {
		return nil, err
	}
	if err := m.start(&sh.spec, kernel, accel); err != nil {
		return nil, err
	}
	booting, cancel := context.WithTimeout(m.ctx, keeperPatience)
	defer cancel()
	if err := m.vm.Booted(booting); err != nil {
		return nil, err
	}
	return m, nil
}

// adopt makes m, which was booted without an image, the machine of s. The returned context ends when the machine cannot go on.
func (m *machine) adopt(ctx context.Context, s *Spec, req api.SandboxRequest, rec *recorder) (_ *machine, _ context.Context, err error) {
	m.rec.Store(rec)
	ctx, fail := context.WithCancelCause(ctx)
	// What ends either ends both.
	context.AfterFunc(m.ctx, func() { fail(context.Cause(m.ctx)) })
	context.AfterFunc(ctx, func() { m.fail(context.Cause(ctx)) })
	defer func() {
		if err != nil {
			err = errors.Join(m.why(ctx, err), m.close(ctx, false))
		}
	}()
	o, err := s.network(nil)
	if err != nil {
		return nil, nil, err
	}
	if err := m.network.Permit(o.Policy, o.Ports); err != nil {
		return nil, nil, err
	}
	if err := m.client.Call(ctx, "POST", "/v1/sandboxes/"+m.id+"/image", req, nil); err != nil {
		return nil, nil, err
	}
	m.id = s.ID
	if err := m.enter(ctx, s); err != nil {
		return nil, nil, err
	}
	return m, ctx, nil
}

// keeper owns a VM that is ready.
type keeper struct {
	host    *Host
	machine *machine
	out     io.Writer
}

// serve offers the VM and runs the sandbox of the first who takes it.
func (k *keeper) serve(ctx, unused context.Context, sh shape) error {
	dir, err := k.host.poolDir()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, sh.name+"-"+k.machine.id+keeperSocket)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer ln.Close() // and with it goes path
	go func() {      // ends with unused
		select {
		case <-k.machine.vm.Done():
		case <-k.machine.ctx.Done():
		case <-unused.Done():
		}
		ln.Close()
	}()
	fmt.Fprintln(k.out, keeperReady)
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return nil
		}
		o, err := receiveOrder(conn)
		if err != nil { // somebody who has only looked whether we are there
			conn.Close()
			continue
		}
		ln.Close()
		fmt.Fprintln(k.out, keeperTaken)
		defer conn.Close()
		return k.run(ctx, conn, o)
	}
}

// errAbandoned is why a pooled VM ends whose launcher has gone away without a word.
var errAbandoned = errors.New("the launcher of the sandbox has ended")

// run runs the sandbox that o is about. It ends with conn, whose other end is the launcher's.
func (k *keeper) run(ctx context.Context, conn *net.UnixConn, o *received) error {
	defer o.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	say := newSayer(conn)
	say.say(saying{Taken: true})
	conn.SetReadDeadline(time.Now().Add(handoverPatience))
	var first wish
	if err := o.wishes.Decode(&first); err != nil || !first.Begin {
		return nil // a launcher that has not waited
	}
	conn.SetReadDeadline(time.Time{})
	signals, resize := make(chan os.Signal), make(chan vmboot.Size)
	go func() { // ends with conn
		defer cancel(errAbandoned)
		for {
			var w wish
			if o.wishes.Decode(&w) != nil {
				return
			}
			if w.Signal != 0 {
				pass(ctx, signals, os.Signal(syscall.Signal(w.Signal)))
			}
			if w.Resize != nil {
				pass(ctx, resize, *w.Resize)
			}
		}
	}()
	spec := o.order.Spec
	status, timing, err := k.host.supervise(ctx, o.order.Start, o.order.Dir, &spec, RunOptions{Registry: o.order.Registry, Pull: o.order.Pull,
		Verify: o.order.Verify, Stdin: reader(o.streams[0]), Stdout: writer(o.streams[1]), Stderr: writer(o.streams[2]),
		Signals: signals, Resize: resize, Started: func() { say.say(saying{Started: true}) }, ready: k.machine})
	end := ending{Status: status, Timing: timing, Image: spec.Image, Digest: spec.Digest}
	if err != nil {
		end.Failure = startFailure(err)
	}
	say.say(saying{Ended: &end})
	return nil
}

func pass[T any](ctx context.Context, to chan<- T, v T) {
	select {
	case to <- v:
	case <-ctx.Done():
	}
}

// reader and writer keep a nil file from becoming an interface that is not nil.
func reader(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return f
}

func writer(f *os.File) io.Writer {
	if f == nil {
		return nil
	}
	return f
}
