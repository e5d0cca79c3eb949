package msb

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
)

// detached is what a detached supervisor is told on its standard input, where nobody else can read it. A second value there
// means that whoever wanted the sandbox does not want it any more.
type detached struct {
	Registry Registry
	Pull     PullPolicy
}

// started is the one line that a detached supervisor writes to its standard output: how the start went.
type started struct {
	Error string `json:"error,omitempty"` // "" when the command runs
	Code  string `json:"code,omitempty"`  // of an api.Error, or one of failures
	Exit  int    `json:"exit,omitempty"`  // of a vmboot.StartError
}

// failures are the errors of this package that a start may end with, by the code under which they travel.
var failures = map[string]error{"running": ErrRunning, "no_sandbox": ErrNoSandbox, "timeout": ErrTimeout, "damaged": ErrDamaged}

// supervisorLog is what the detached supervisor itself has to say.
const supervisorLog = "supervisor.log"

// Start runs sb in a process of its own, which outlives the caller, and returns when its command has been started. The
// image is the pinned one, wherever its tag points by now; what is missing of it is fetched by digest, with the registry
// settings that sb was created with, if that was in this process, or those that opts give. A caller who does not want to wait
// takes the sandbox with him.
func (sb *Sandbox) Start(ctx context.Context, opts ...Option) error {
	s := settings{registry: sb.registry, pull: sb.pull}
	for _, o := range opts {
		if err := o(&s); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if sb.Running() {
		return fmt.Errorf("%w: %s", ErrRunning, sb.Name)
	}
	input, err := json.Marshal(detached{Registry: s.registry, Pull: s.pull})
	if err != nil {
		return err
	}
	stdin, stdout, err := sb.detach()
	if err != nil {
		return fmt.Errorf("start sandbox %s: %w", sb.Name, err)
	}
	defer stdin.Close()
	defer stdout.Close()
	defer sb.host.watch(ctx)()
	if _, err := stdin.Write(input); err != nil {
		return fmt.Errorf("start sandbox %s: %w", sb.Name, err)
	}
	unwanted := func() { stdin.WriteString("{}") }
	defer context.AfterFunc(ctx, unwanted)()
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err := ctx.Err(); err != nil {
		unwanted() // again, for it may have come too late
		return err
	}
	if err != nil {
		return fmt.Errorf("the supervisor of sandbox %s ended without a word: see its logs/%s", sb.Name, supervisorLog)
	}
	return readStarted(line)
}

// detach starts sb's supervisor as nobody's child: this process may run for long and would have to wait for it in the end. The
// caller closes its standard input and output.
func (sb *Sandbox) detach() (stdin, stdout *os.File, err error) {
	binary, err := api.Binary("msb-launch")
	if err != nil {
		return nil, nil, err
	}
	log, err := os.OpenFile(filepath.Join(sb.dir.logs(), supervisorLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	theirIn, stdin, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer theirIn.Close()
	stdout, theirOut, err := os.Pipe()
	if err != nil {
		stdin.Close()
		return nil, nil, err
	}
	defer theirOut.Close()
	cmd := supervisor(binary, string(sb.host.home), sb.Name, "--fork")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirIn, theirOut, log
	if err := cmd.Run(); err != nil {
		stdin.Close()
		stdout.Close()
		return nil, nil, err
	}
	return stdin, stdout, nil
}

func supervisor(binary string, home, name string, flags ...string) *exec.Cmd {
	cmd := exec.Command(binary, append(append([]string{"supervise", "--home", home}, flags...), "--", name)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// ForkSupervisor is for msb-launch itself, as Start runs it: it starts the supervisor of the sandbox of that name with this process's
// standard streams and leaves it alone.
func (h *Host) ForkSupervisor(name string) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := supervisor(binary, string(h.home), name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Start()
}

// SuperviseDetached is for msb-launch itself, as Start runs it: it runs the sandbox of that name as in says and tells out how the
// start went. It is ended by signals, and when in says that nobody wants the sandbox any more.
func (h *Host) SuperviseDetached(ctx context.Context, name string, in io.Reader, out io.WriteCloser, signals <-chan os.Signal) error {
	orders := json.NewDecoder(in)
	var d detached
	if err := orders.Decode(&d); err != nil {
		return errors.New("supervise is for msb-launch itself: use start")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with its input, whose other end closes when the start has been heard of
		if orders.Decode(&struct{}{}) == nil {
			cancel(errInterrupted)
		}
	}()
	told := false
	tell := func(s started) {
		if b, err := json.Marshal(s); err == nil && !told {
			out.Write(append(b, '\n'))
			out.Close()
		}
		told = true
	}
	sb, err := h.Get(name)
	if err == nil {
		_, _, err = sb.Supervise(ctx, RunOptions{Registry: d.Registry, Pull: d.Pull, Signals: signals, Started: func() { tell(started{}) }})
	}
	if err != nil {
		tell(startFailure(err))
	}
	return err
}

// startFailure is err as it travels.
func startFailure(err error) started {
	s := started{Error: err.Error(), Code: api.AsError(err).Code}
	var notStarted *vmboot.StartError
	if errors.As(err, &notStarted) {
		s.Exit = notStarted.Code
	}
	for code, known := range failures {
		if errors.Is(err, known) {
			s.Code = code
		}
	}
	return s
}

// readStarted is the error that startFailure was given, as far as it can be told apart from others.
func readStarted(line []byte) error {
	var s started
	if err := json.Unmarshal(line, &s); err != nil {
		return fmt.Errorf("read what the supervisor says: %w", err)
	}
	return s.err()
}

func (s started) err() error {
	known, ok := failures[s.Code]
	switch {
	case s.Error == "":
		return nil
	case s.Exit != 0:
		return &vmboot.StartError{Code: s.Exit, Reason: s.Error}
	case ok:
		return &startError{s.Error, known}
	default:
		return &api.Error{Code: s.Code, Message: s.Error}
	}
}

// startError is an error of this package that has travelled.
type startError struct {
	said string
	is   error
}

func (e *startError) Error() string { return e.said }
func (e *startError) Unwrap() error { return e.is }
