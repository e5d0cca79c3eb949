package msb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
	"github.com/microsandbox/msb-fs/vmboot/usernet"
)

// machine is a sandbox that runs, or the VM that one will have: the daemon serves its root, QEMU its hardware.
type machine struct {
	vm      *vmboot.VM
	agent   *vmboot.Agent
	network *usernet.Network // the VM's, which closes it; nil where it has none
	image   api.Image

	id     string
	client *api.Client
	vols   *volumes
	calls  sync.WaitGroup // requests to the daemon that nobody waits for

	ctx      context.Context // ends when the machine cannot go on
	fail     context.CancelCauseFunc
	rec      atomic.Pointer[recorder] // nil before there is a sandbox
	socket   chan string              // of the root filesystem
	resolved chan api.Image
	serving  context.Context    // of the daemon's answer
	hangUp   context.CancelFunc // makes the daemon stop
	ended    chan struct{}      // closed when the daemon has stopped serving the root
}

// errUnserved is why a machine ends when the daemon does.
var errUnserved = errors.New("the msb-fs daemon stopped serving the sandbox's root: see its log")

const (
	// closeTimeout bounds an orderly end: the guest syncs its disks, the daemon closes the upper directory.
	closeTimeout = time.Minute
	// closeGrace is what the guest's other processes get between SIGTERM and SIGKILL when the main one has ended.
	closeGrace = 100 * time.Millisecond
	// endPatience is how long after the daemon has lost the VM the VM's own end is waited for.
	endPatience = time.Second
)

// boot starts s with root filesystem req. The VM starts at once and boots while the image is being resolved and indexed.
// ctx ends when the machine cannot go on; the caller closes the machine whenever boot succeeds.
func boot(ctx context.Context, client *api.Client, s *Spec, req api.SandboxRequest, rec *recorder) (_ *machine, _ context.Context, err error) {
	kernel, accel, err := s.engine(ctx)
	if err != nil {
		return nil, nil, err
	}
	vols, err := s.openVolumes()
	if err != nil {
		return nil, nil, err
	}
	m := newMachine(ctx, client, s.ID, vols)
	m.rec.Store(rec)
	m.listen(req)
	defer func() {
		if err != nil {
			err = errors.Join(m.why(m.ctx, err), m.close(ctx, false))
		}
	}()
	if m.network, err = s.connect(); err != nil {
		return nil, nil, err
	}
	if err := m.start(s, kernel, accel); err != nil {
		return nil, nil, err
	}
	if err := m.enter(m.ctx, s); err != nil {
		return nil, nil, err
	}
	return m, m.ctx, nil
}

// engine is what s's VM runs on.
func (s *Spec) engine(ctx context.Context) (*vmboot.Kernel, string, error) {
	kernel, err := vmboot.FindKernel(s.Kernel)
	if err != nil {
		return nil, "", err
	}
	accel, err := vmboot.Accelerator(ctx, s.Accel, kernel)
	return kernel, accel, err
}

// newMachine returns a machine that goes by id with the daemon. ctx ends it.
func newMachine(ctx context.Context, client *api.Client, id string, vols *volumes) *machine {
	m := &machine{id: id, client: client, vols: vols, ended: make(chan struct{}), socket: make(chan string, 1), resolved: make(chan api.Image, 1)}
	m.ctx, m.fail = context.WithCancelCause(ctx)
	m.serving, m.hangUp = context.WithCancel(context.WithoutCancel(ctx))
	return m
}

// listen has the daemon serve req until it ends or hangUp is called.
func (m *machine) listen(req api.SandboxRequest) {
	go func() {
		defer close(m.ended)
		err := m.client.Stream(m.serving, "POST", "/v1/sandboxes", req, func(e api.Event) error {
			switch e.Name {
			case api.EventSocket:
				m.socket <- e.Socket
				return nil
			case api.EventResolved:
				m.resolved <- *e.Image
			}
			m.mark(e.Name)
			return nil
		})
		if err == nil {
			err = errUnserved
		}
		m.fail(err)
	}()
}

// mark records that name has happened now.
func (m *machine) mark(name string) {
	if rec := m.rec.Load(); rec != nil {
		rec.mark(m.serving, name)
	}
}

// start starts a VM as s has it, with m's network and volumes.
func (m *machine) start(s *Spec, kernel *vmboot.Kernel, accel string) (err error) {
	config := vmboot.Config{Kernel: kernel, Accel: accel, CPUs: s.CPUs, MemoryMiB: s.MemoryMiB, Network: m.network}
	defer func() {
		if m.vm == nil && m.network != nil {
			m.network.Close()
		}
	}()
	select {
	case config.FSSocket = <-m.socket:
	case <-m.ctx.Done():
		return m.ctx.Err()
	}
	config.RunDir = filepath.Dir(config.FSSocket)
	if config.Mounts, err = m.vols.serve(m.ctx, config.RunDir); err != nil {
		return err
	}
	if m.vm, err = vmboot.Start(m.ctx, config); err != nil {
		return err
	}
	m.mark(eventVMStarted)
	return nil
}

// enter waits for the image and for the agent, which it tells what sandbox this is.
func (m *machine) enter(ctx context.Context, s *Spec) (err error) {
	select {
	case m.image = <-m.resolved:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := runsHere(m.image.Config); err != nil {
		return err
	}
	if m.agent, err = m.vm.Agent(ctx, vmboot.Setup{Hostname: s.Hostname, Tmpfs: s.tmpfs(), Offline: s.offline()}); err != nil {
		return err
	}
	m.mark(eventAgentUp)
	return nil
}

// connect makes s's network; nil where it is to have none.
func (s *Spec) connect() (*usernet.Network, error) {
	o, err := s.network(nil)
	if err != nil || s.offline() {
		return nil, err
	}
	return usernet.New(o)
}

// offline says that s needs no network at all.
func (s *Spec) offline() bool { return s.Net == string(usernet.None) && len(s.Ports) == 0 }

func (s *Spec) tmpfs() (out []vmboot.Tmpfs) {
	for _, t := range s.Tmpfs {
		out = append(out, vmboot.Tmpfs{Target: t.Path, SizeMiB: t.SizeMiB})
	}
	return out
}

// complete tells the daemon that the sandbox has started: what has been fetched until now is what the start needed.
func (m *machine) complete(ctx context.Context) {
	m.calls.Go(func() {
		// If it does not get there, the rest of the image comes a little later.
		m.client.Call(ctx, "POST", "/v1/sandboxes/"+m.id+"/complete", nil, nil)
	})
}

// why is why err happened: whatever ended ctx, or the VM. A VM that has ended by itself is the reason why nobody serves it.
func (m *machine) why(ctx context.Context, err error) error {
	if errors.Is(err, vmboot.ErrNoServer) { // the daemon has given up, and is about to say why
		select {
		case <-m.ended:
		case <-time.After(endPatience):
		}
	}
	cause := context.Cause(ctx)
	var notStarted *vmboot.StartError
	if errors.As(err, &notStarted) || (cause != nil && !errors.Is(cause, errUnserved)) {
		return cmp.Or(cause, err)
	}
	if m.vm == nil {
		if errors.Is(err, context.Canceled) {
			return cmp.Or(cause, err)
		}
		return err // one that could not be started is not served either
	}
	select {
	case <-m.vm.Done():
		if verr := m.vm.Err(); errors.Is(verr, context.Canceled) {
			break // the VM was killed because nobody served it any more
		} else if verr != nil {
			return verr
		}
		return fmt.Errorf("the virtual machine has ended%s", m.vm.Explain())
	case <-time.After(endPatience):
	}
	if cause != nil && m.daemonAnswers() { // it has seen the VM hang up before we saw it end
		return fmt.Errorf("the virtual machine has ended%s", m.vm.Explain())
	}
	return cmp.Or(cause, err)
}

func (m *machine) daemonAnswers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	var s api.Status
	return m.client.Call(ctx, "GET", "/v1/status", nil, &s) == nil
}

// served tells whether the guest can still write to its root.
func (m *machine) served() bool {
	select {
	case <-m.ended:
	case <-m.vm.Done():
	default:
		return true
	}
	return false
}

// close ends the VM and returns when the daemon has let go of the upper directory. What the guest has not written yet is
// written first, if orderly is true.
func (m *machine) close(ctx context.Context, orderly bool) error {
	defer m.calls.Wait()
	defer m.hangUp()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	var err error
	switch {
	case m.vm == nil:
		m.hangUp()
	case orderly && m.agent != nil && m.served():
		err = m.vm.Close(ctx, closeGrace)
	default:
		m.vm.Kill()
	}
	err = errors.Join(err, m.vols.close())
	select {
	case <-m.ended: // the VM has hung up, so the daemon ends by itself
	case <-ctx.Done():
		m.hangUp()
		err = errors.Join(err, fmt.Errorf("end sandbox: the msb-fs daemon still serves its root: %w", ctx.Err()))
	}
	return err
}
