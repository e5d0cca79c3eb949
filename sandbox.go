package msb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
)

// Sandbox is a sandbox of a Host. It is safe for concurrent use, also by several processes.
type Sandbox struct {
	Spec

	host     *Host
	dir      dir
	damaged  error    // why Spec is but a name
	registry Registry // of its creation, for as long as this process remembers it
	pull     PullPolicy
}

// Create makes a sandbox of s and pins its image. It boots nothing.
func (h *Host) Create(ctx context.Context, s Spec, registry Registry, pull PullPolicy) (*Sandbox, error) {
	if err := s.complete(); err != nil {
		return nil, err
	}
	client, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	// The name is taken first: a long pull for a name that another sandbox has would be for nothing.
	d, lock, err := create(h.home, &s)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	defer h.watch(ctx)()
	req := api.PullRequest{ImageRequest: registry.request(s.Image, s.Platform, pull), Lazy: true}
	err = client.Stream(ctx, "POST", "/v1/pull", req, func(e api.Event) error {
		if e.Image != nil {
			s.Image, s.Digest = e.Image.Reference, e.Image.Digest
		}
		return nil
	})
	if err == nil {
		err = writeJSON(d.spec(), &s)
	}
	if err != nil {
		return nil, errors.Join(err, d.remove())
	}
	return &Sandbox{Spec: s, host: h, dir: d, registry: registry, pull: pull}, nil
}

// Get returns the sandbox of that name, id, or beginning of an id that only one has.
func (h *Host) Get(name string) (*Sandbox, error) {
	all, err := h.List()
	if err != nil {
		return nil, err
	}
	var found []*Sandbox
	for _, sb := range all {
		if sb.Name == name || sb.ID == name {
			return sb, nil
		}
		if name != "" && strings.HasPrefix(sb.ID, name) {
			found = append(found, sb)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %s: msb-launch ls -a lists them", ErrNoSandbox, name)
	case 1:
		return found[0], nil
	default:
		return nil, fmt.Errorf("%s is the beginning of %d sandboxes' ids: give more of it", name, len(found))
	}
}

// List returns all sandboxes, sorted by name, also those that are damaged. Those that should have been removed when they ended,
// but whose supervisor was killed, are removed now.
func (h *Host) List() ([]*Sandbox, error) {
	dirs, err := list(h.home)
	if err != nil {
		return nil, err
	}
	out := make([]*Sandbox, 0, len(dirs))
	for _, d := range dirs {
		sb := &Sandbox{host: h, dir: d}
		err := readJSON(d.spec(), &sb.Spec)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if name := filepath.Base(string(d)); err != nil || sb.Name != name || sb.ID == "" {
			sb.Spec = Spec{Name: name}
			sb.damaged = fmt.Errorf("%w: %s: remove it: msb-launch rm %s", ErrDamaged, name, name)
		}
		if sb.Ephemeral && sb.begun() && sb.collect() {
			continue
		}
		out = append(out, sb)
	}
	return out, nil
}

// Damaged is ErrDamaged if what sb is made of cannot be read, after a crash of the machine or a mistake: it has but a name then, and
// can be removed.
func (sb *Sandbox) Damaged() error { return sb.damaged }

// begun tells whether sb has been run, or should have been by now: one that Create has just made is not started yet.
func (sb *Sandbox) begun() bool {
	if _, err := os.Stat(sb.dir.state()); err == nil {
		return true
	}
	fi, err := os.Stat(sb.dir.spec())
	return err == nil && time.Since(fi.ModTime()) > newGrace
}

// collect removes sb if nobody runs it.
func (sb *Sandbox) collect() bool {
	lock, err := sb.dir.tryLock()
	if err != nil {
		return errors.Is(err, ErrNoSandbox)
	}
	defer lock.Close()
	return sb.discard() == nil
}

// discard deletes sb, whose lock the caller has, with what a supervisor that was killed has left of it elsewhere.
func (sb *Sandbox) discard() error {
	if path, err := sb.host.controlSocket(sb.ID); err == nil && sb.ID != "" {
		os.Remove(path) // which there usually is not
	}
	return sb.dir.remove()
}

// Running tells whether sb runs, or is being started or stopped.
func (sb *Sandbox) Running() bool { return sb.dir.running() }

// State returns how sb's latest run went, which is the zero State if there was none. A run whose supervisor was killed has
// not finished, although sb does not run.
func (sb *Sandbox) State() State {
	var s State
	if readJSON(sb.dir.state(), &s) != nil {
		return State{} // none yet, or a crash of the machine has damaged it: it is for people only
	}
	return s
}

// Upper is the directory that holds what sb has written.
func (sb *Sandbox) Upper() string { return sb.dir.upper() }

// Supervise runs sb in this process, as Run does, until its command ends.
func (sb *Sandbox) Supervise(ctx context.Context, o RunOptions) (Status, Timing, error) {
	start := time.Now()
	lock, err := sb.dir.tryLock()
	if err != nil {
		return Status{}, Timing{}, err
	}
	defer lock.Close()
	// Read again under the lock: it may have been pinned since sb was made, or be another one of that name.
	var spec Spec
	if err := readJSON(sb.dir.spec(), &spec); sb.damaged != nil || err != nil {
		return Status{}, Timing{}, errors.Join(sb.damaged, err)
	}
	if spec.ID != sb.ID {
		return Status{}, Timing{}, fmt.Errorf("%w: %s has been removed, and another made of that name", ErrNoSandbox, sb.Name)
	}
	status, timing, err := sb.host.run(ctx, start, sb.dir, lock, &spec, o)
	if spec.Ephemeral {
		err = errors.Join(err, sb.dir.remove())
	}
	return status, timing, err
}

// Exec runs p in sb, which is running, and returns how it ended. What p leaves open of Env, Dir and User is as in the image and sb's own
// command; Env is added to theirs.
func (sb *Sandbox) Exec(ctx context.Context, p Process) (Status, error) {
	client, err := sb.host.connect(ctx)
	if err != nil {
		return Status{}, err
	}
	var config []byte
	err = client.Call(ctx, "GET", "/v1/configs/"+sb.Digest, nil, &config)
	client.Close()
	if err != nil {
		return Status{}, err
	}
	base := Command{Entrypoint: new(string), Args: p.Args, TTY: p.TTY,
		Env: slices.Concat(sb.Command.Env, p.Env), Dir: cmp.Or(p.Dir, sb.Command.Dir), User: cmp.Or(p.User, sb.Command.User)}
	own, err := base.process(config, sb.Hostname)
	if err != nil {
		return Status{}, err
	}
	p.Env, p.Dir, p.User, p.MakeDir = own.Env, own.Dir, own.User, p.Dir == ""
	return sb.agent().Exec(ctx, p)
}

// CopyIn copies what is at path here, a file or a directory with all below it, to to in sb, which is running: into it where that
// is a directory, as docker cp does.
func (sb *Sandbox) CopyIn(ctx context.Context, path, to string) error {
	return sb.agent().CopyIn(ctx, path, to)
}

// CopyOut copies what is at path in sb, which is running, to to here. Nothing is written outside of it, whatever sb says.
func (sb *Sandbox) CopyOut(ctx context.Context, path, to string) error {
	return sb.agent().CopyOut(ctx, path, to)
}

// CopyInTar unpacks the tar stream r into the directory to in sb, which is running.
func (sb *Sandbox) CopyInTar(ctx context.Context, r io.Reader, to string) error {
	return sb.agent().CopyInTar(ctx, r, to)
}

// CopyOutTar writes what is at path in sb, which is running, to w as a tar stream, in which sb may say anything.
func (sb *Sandbox) CopyOutTar(ctx context.Context, path string, w io.Writer) error {
	return sb.agent().CopyOutTar(ctx, path, w)
}

// agent is the agent of sb's guest, by way of whoever supervises sb.
func (sb *Sandbox) agent() *vmboot.Agent {
	return vmboot.NewAgent(func(ctx context.Context) (net.Conn, error) {
		return sb.host.dialControl(ctx, &sb.Spec, controlRequest{Op: opStream})
	})
}

// Stop asks sb's command to end, by SIGTERM or what its image wants instead, kills it after grace, and returns when sb has ended. One
// that does not run is no error.
func (sb *Sandbox) Stop(ctx context.Context, grace time.Duration) error {
	return sb.end(ctx, controlRequest{Op: opStop, Grace: grace})
}

// end sends req to whoever runs sb now, and returns when that run is over.
func (sb *Sandbox) end(ctx context.Context, req controlRequest) error {
	this := sb.State().Started
	conn, err := sb.tell(ctx, req)
	if conn != nil {
		defer conn.Close()
	}
	if errors.Is(err, errSilent) && conn != nil {
		pid, perr := peer(conn)
		switch {
		case perr != nil:
		case req.Op == opKill:
			err = syscall.Kill(pid, syscall.SIGKILL) // its machine ends with it
		default:
			err = fmt.Errorf("%w: continue it (kill -CONT %d), or kill it (kill -KILL %d)", err, pid, pid)
		}
	}
	if err != nil {
		return fmt.Errorf("stop sandbox %s: %w", sb.Name, err)
	}
	for sb.Running() {
		if now := sb.State().Started; this.IsZero() {
			this = now
		} else if !now.Equal(this) {
			return nil // somebody has started it again
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("stop sandbox %s: %w", sb.Name, err)
		}
	}
	return nil
}

// tell sends req to whoever runs sb, and returns when he has read it. The caller closes the connection, which is nil where nobody
// listens, or nobody runs sb any more.
func (sb *Sandbox) tell(ctx context.Context, req controlRequest) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, controlPatience, errSilent)
	defer cancel()
	for sb.Running() {
		conn, err := sb.host.dialControl(ctx, &sb.Spec, req)
		if err == nil {
			return conn, heard(ctx, conn)
		}
		if pause(ctx) != nil { // it is about to listen, or ending
			return nil, context.Cause(ctx)
		}
	}
	return nil, nil
}

// pause waits for a moment.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(waitEvery):
		return nil
	}
}

// waitEvery is how often Wait looks.
const waitEvery = 20 * time.Millisecond

// Wait returns when sb does not run any more.
func (sb *Sandbox) Wait(ctx context.Context) error {
	tick := time.NewTicker(waitEvery)
	defer tick.Stop()
	for sb.Running() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for sandbox %s to end: %w", sb.Name, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// Remove deletes sb with everything it has written. A running one is killed first if force is true.
func (sb *Sandbox) Remove(ctx context.Context, force bool) error {
	for stopped := false; ; {
		lock, err := sb.dir.tryLock()
		if err == nil {
			defer lock.Close()
			return sb.discard()
		}
		if errors.Is(err, ErrRunning) && force {
			if err = sb.end(ctx, controlRequest{Op: opKill}); err == nil {
				stopped = true
				continue
			}
		}
		if errors.Is(err, ErrNoSandbox) && stopped {
			return nil // an ephemeral one: its supervisor has removed it
		}
		if errors.Is(err, ErrRunning) {
			err = fmt.Errorf("%w: stop it first, or use --force", err)
		}
		return err
	}
}
