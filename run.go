package msb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
)

// exitFailed is the exit code of a run that has failed otherwise than by its command.
const exitFailed = 125

// State is how far a sandbox's latest run got. It is written for people; whether the sandbox runs is told by its lock.
type State struct {
	PID      int       `json:"pid"` // of the supervising process
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished,omitzero"`
	ExitCode int       `json:"exit_code"`
	Error    string    `json:"error,omitempty"` // why it could not be started or went on
}

// RunOptions are what a run of a sandbox needs beside its Spec.
type RunOptions struct {
	Registry Registry
	Pull     PullPolicy
	Verify   string // lazy or strict; "" is lazy
	Stdin    io.Reader
	Stdout   io.Writer
	Stderr   io.Writer
	Signals  <-chan os.Signal // sent on to the command; before there is one, they end the start
	Resize   <-chan vmboot.Size
	Started  func() // called when the command has been started; may be nil

	ready *machine // to run it in; nil is one of its own
}

func (o *RunOptions) boot(ctx context.Context, client *api.Client, s *Spec, req api.SandboxRequest, rec *recorder) (*machine, context.Context, error) {
	if o.ready != nil {
		return o.ready.adopt(ctx, s, req, rec)
	}
	return boot(ctx, client, s, req, rec)
}

// Run makes a sandbox of s, runs its command to the end in the foreground and returns how that ended. The error is a
// *vmboot.StartError where the command could not be started, and ErrTimeout where it was not let end. Timing is valid, as far as it got, also beside an error.
func (h *Host) Run(ctx context.Context, s *Spec, o RunOptions) (vmboot.Status, Timing, error) {
	start := time.Now()
	if err := s.complete(); err != nil {
		return vmboot.Status{}, Timing{}, err
	}
	d, lock, err := create(h.home, s)
	if err != nil {
		return vmboot.Status{}, Timing{}, err
	}
	defer lock.Close()
	// What is missing once the command runs is the command's to wait for: nothing is said into its output.
	stop := sync.OnceFunc(h.watch(ctx))
	defer stop()
	started := o.Started
	o.Started = func() {
		stop()
		if started != nil {
			started()
		}
	}
	status, timing, err := h.run(ctx, start, d, lock, s, o)
	// One that never got as far as a pin is of no use to anybody.
	if s.Ephemeral || s.Digest == "" {
		err = errors.Join(err, d.remove())
	}
	return status, timing, err
}

// supervise runs s, whose directory d the caller has locked, from boot to end.
func (h *Host) supervise(ctx context.Context, start time.Time, d dir, s *Spec, o RunOptions) (status vmboot.Status, timing Timing, err error) {
	state := State{PID: os.Getpid(), Started: start.UTC()}
	if err := writeJSON(d.state(), state); err != nil {
		return status, timing, err
	}
	defer func() {
		state.Finished, state.ExitCode = time.Now().UTC(), status.Code
		if err != nil {
			state.Error = err.Error()
			state.ExitCode = cmp.Or(status.Code, exitFailed)
		}
		err = errors.Join(err, writeJSON(d.state(), state))
	}()
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	// From the beginning: whoever wants to stop a sandbox that is still starting must not have to know its process.
	ctl, err := h.control(s, kill)
	if err != nil {
		return status, timing, err
	}
	defer ctl.close()
	client, err := h.connect(ctx)
	if err != nil {
		return status, timing, err
	}
	defer client.Close()
	rec := &recorder{start: start, usage: func(ctx context.Context) (u api.Usage, err error) {
		err = client.Call(ctx, "GET", "/v1/sandboxes/"+s.ID+"/usage", nil, &u)
		return u, err
	}}
	req := api.SandboxRequest{ImageRequest: o.Registry.request(s.Image, s.Platform, o.Pull), ID: s.ID, Upper: d.upper(), Limit: int64(s.UpperMiB) << 20, Pinned: s.Digest,
		Verify: o.Verify, Entrypoint: s.Command.Entrypoint, Args: s.Command.Args, Env: s.Command.Env}
	booting, booted := interruptible(ctx, o.Signals, ctl.signals)
	m, serving, err := o.boot(booting, client, s, req, rec)
	booted()
	if err != nil {
		return status, rec.finish(context.WithoutCancel(ctx)), err
	}
	defer func() { err = errors.Join(err, m.close(ctx, !s.Ephemeral)) }()
	defer func() { timing = rec.finish(context.WithoutCancel(ctx)) }()
	if s.Digest == "" {
		s.Image, s.Digest = m.image.Reference, m.image.Digest
		if err := writeJSON(d.spec(), s); err != nil {
			return status, timing, err
		}
	}
	p, err := s.Command.process(m.image.Config, s.Hostname)
	if err != nil {
		return status, timing, err
	}
	ctl.begin(m.vm, stopSignal(m.image.Config))
	logs, err := openLogs(d.logs())
	if err != nil {
		return status, timing, err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	status, err = m.run(serving, p, s.Timeout, o, ctl.signals, logs, rec)
	return status, timing, err
}

// run runs the main process p, for as long as timeout allows if that is not 0.
func (m *machine) run(ctx context.Context, p vmboot.Process, timeout time.Duration, o RunOptions, stop <-chan os.Signal, logs *logWriter, rec *recorder) (vmboot.Status, error) {
	var first sync.Once
	mark := func() {
		rec.mark(ctx, eventFirstOutput)
		m.complete(ctx)
	}
	p.Stdin = o.Stdin
	p.Stdout = firstWrite{tee(o.Stdout, logs.stream("stdout")), &first, mark}
	p.Stderr = firstWrite{tee(o.Stderr, logs.stream("stderr")), &first, mark}
	signals, done := merge(o.Signals, stop)
	defer done()
	p.Signals, p.Resize = signals, o.Resize
	p.Started = func() {
		rec.mark(ctx, eventStarted)
		if o.Started != nil {
			o.Started()
		}
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: killed after %v", ErrTimeout, timeout))
		defer cancel()
	}
	status, err := m.agent.Exec(ctx, p)
	if err != nil {
		return status, m.why(ctx, err)
	}
	rec.mark(ctx, eventCommandEnded)
	return status, nil
}

// tee writes to a, which may be nil, and b.
func tee(a, b io.Writer) io.Writer {
	if a == nil {
		return b
	}
	return io.MultiWriter(a, b)
}

// merge returns a channel of what a and b, either of which may be nil, send until done is called.
func merge(a, b <-chan os.Signal) (_ <-chan os.Signal, done func()) {
	out, stop, stopped := make(chan os.Signal), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			var s os.Signal
			select {
			case s = <-a:
			case s = <-b:
			case <-stop:
				return
			}
			select {
			case out <- s:
			case <-stop:
				return
			}
		}
	}()
	return out, func() { close(stop); <-stopped }
}

// errInterrupted is why a boot ends when the user has had enough of it.
var errInterrupted = errors.New("interrupted while the sandbox was starting")

// interruptible returns a context that a signal of either channel ends, until booted is called: before there is a process to send signals to,
// they mean the launcher.
func interruptible(ctx context.Context, signals, stop <-chan os.Signal) (_ context.Context, booted func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-signals:
			cancel(errInterrupted)
		case <-stop:
			cancel(errInterrupted)
		case <-stopped:
		}
	}()
	return ctx, func() { close(stopped); <-done }
}
