package msb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
	"github.com/microsandbox/msb-fs/vmboot/usernet"
)

// machine is a sandbox that runs: the daemon serves its root, QEMU its hardware.
type machine struct {
	vm    *vmboot.VM
	agent *vmboot.Agent
	image api.Image

	id     string
	client *api.Client
	vols   *volumes
	calls  sync.WaitGroup // requests to the daemon that nobody waits for

	ended  chan struct{}      // closed when the daemon has stopped serving the root
	hangUp context.CancelFunc // makes the daemon stop
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
	kernel, err := vmboot.FindKernel(s.Kernel)
	if err != nil {
		return nil, nil, err
	}
	accel, err := vmboot.Accelerator(ctx, s.Accel, kernel)
	if err != nil {
		return nil, nil, err
	}
	vols, err := s.openVolumes()
	if err != nil {
		return nil, nil, err
	}
	ctx, fail := context.WithCancelCause(ctx)
	serving, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	m := &machine{id: s.ID, client: client, vols: vols, ended: make(chan struct{}), hangUp: hangUp}
	defer func() {
		if err != nil {
			err = errors.Join(m.why(ctx, err), m.close(ctx, false))
		}
	}()

	socket, resolved := make(chan string, 1), make(chan api.Image, 1)
	go func() {
		defer close(m.ended)
		err := client.Stream(serving, "POST", "/v1/sandboxes", req, func(e api.Event) error {
			switch e.Name {
			case api.EventSocket:
				socket <- e.Socket
				return nil
			case api.EventResolved:
				resolved <- *e.Image
			}
			rec.mark(serving, e.Name)
			return nil
		})
		if err == nil {
			err = errUnserved
		}
		fail(err)
	}()

	var path string
	select {
	case path = <-socket:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	mounts, err := m.vols.serve(ctx, filepath.Dir(path))
	if err != nil {
		return nil, nil, err
	}
	network, err := s.connect()
	if err != nil {
		return nil, nil, err
	}
	m.vm, err = vmboot.Start(ctx, vmboot.Config{Kernel: kernel, Accel: accel, CPUs: s.CPUs, MemoryMiB: s.MemoryMiB,
		FSSocket: path, RunDir: filepath.Dir(path), Network: network, Mounts: mounts})
	if err != nil {
		return nil, nil, err
	}
	rec.mark(serving, eventVMStarted)
	select {
	case m.image = <-resolved:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	if m.agent, err = m.vm.Agent(ctx, vmboot.Setup{Hostname: s.Hostname, Tmpfs: s.tmpfs()}); err != nil {
		return nil, nil, err
	}
	rec.mark(serving, eventAgentUp)
	return m, ctx, nil
}

// connect makes s's network; nil where it is to have none.
func (s *Spec) connect() (*usernet.Network, error) {
	o, err := s.network(nil)
	if err != nil || o.Policy == usernet.None && len(o.Ports) == 0 {
		return nil, err
	}
	return usernet.New(o)
}

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
	cause := context.Cause(ctx)
	var notStarted *vmboot.StartError
	if errors.As(err, &notStarted) || m.vm == nil || (cause != nil && !errors.Is(cause, errUnserved)) {
		return cmp.Or(cause, err)
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
	return cmp.Or(cause, err)
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
