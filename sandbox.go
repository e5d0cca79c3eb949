package msb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
)

// Sandbox is a sandbox of a Host. It is safe for concurrent use, also by several processes.
type Sandbox struct {
	Spec

	host *Host
	dir  dir
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
	return &Sandbox{Spec: s, host: h, dir: d}, nil
}

// Get returns the sandbox of that name, id, or beginning of an id that only one has. That another one is damaged is no error
// unless none is found.
func (h *Host) Get(name string) (*Sandbox, error) {
	all, damaged := h.sound()
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
		if damaged != nil {
			return nil, damaged
		}
		return nil, fmt.Errorf("%w: %s: msb-launch ls -a lists them", ErrNoSandbox, name)
	case 1:
		return found[0], nil
	default:
		return nil, fmt.Errorf("%s is the beginning of %d sandboxes' ids: give more of it", name, len(found))
	}
}

// List returns all sandboxes, sorted by name. Those that should have been removed when they ended, but whose supervisor
// was killed, are removed now.
func (h *Host) List() ([]*Sandbox, error) {
	all, err := h.sound()
	if err != nil {
		return nil, err
	}
	return all, nil
}

// sound is List, which goes on when a sandbox cannot be read; the error says so of the last one.
func (h *Host) sound() (out []*Sandbox, damaged error) {
	dirs, err := list(h.home)
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		sb := &Sandbox{host: h, dir: d}
		if err := readJSON(d.spec(), &sb.Spec); errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		} else if err != nil {
			damaged = fmt.Errorf("sandbox %s is damaged: %w: remove %s", filepath.Base(string(d)), err, d)
			continue
		}
		if sb.Ephemeral && sb.begun() && sb.collect() {
			continue
		}
		out = append(out, sb)
	}
	return out, damaged
}

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
	return sb.dir.remove() == nil
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
func (sb *Sandbox) Supervise(ctx context.Context, o RunOptions) (vmboot.Status, Timing, error) {
	start := time.Now()
	lock, err := sb.dir.tryLock()
	if err != nil {
		return vmboot.Status{}, Timing{}, err
	}
	defer lock.Close()
	// Read again under the lock: it may have been pinned since sb was made, or be another one of that name.
	var spec Spec
	if err := readJSON(sb.dir.spec(), &spec); err != nil {
		return vmboot.Status{}, Timing{}, fmt.Errorf("sandbox %s is damaged: %w: remove %s", sb.Name, err, sb.dir)
	}
	if spec.ID != sb.ID {
		return vmboot.Status{}, Timing{}, fmt.Errorf("%w: %s has been removed, and another made of that name", ErrNoSandbox, sb.Name)
	}
	status, timing, err := sb.host.supervise(ctx, start, sb.dir, &spec, o)
	if spec.Ephemeral {
		err = errors.Join(err, sb.dir.remove())
	}
	return status, timing, err
}

// Exec runs p in sb, which is running, and returns how it ended.
func (sb *Sandbox) Exec(ctx context.Context, p vmboot.Process) (vmboot.Status, error) {
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

// agent is the agent of sb's guest, by way of whoever supervises sb.
func (sb *Sandbox) agent() *vmboot.Agent {
	return vmboot.NewAgent(func(ctx context.Context) (net.Conn, error) {
		return sb.host.dialControl(ctx, &sb.Spec, controlRequest{Op: opStream})
	})
}

// Process is the process that c makes over sb's image: its environment, user and directory, but none of its command.
func (sb *Sandbox) Process(ctx context.Context, c Command) (vmboot.Process, error) {
	client, err := sb.host.connect(ctx)
	if err != nil {
		return vmboot.Process{}, err
	}
	defer client.Close()
	var config []byte
	if err := client.Call(ctx, "GET", "/v1/configs/"+sb.Digest, nil, &config); err != nil {
		return vmboot.Process{}, err
	}
	none := ""
	c.Entrypoint = &none
	c.Env = append(append([]string{}, sb.Command.Env...), c.Env...)
	if c.Dir == "" {
		c.Dir = sb.Command.Dir
	}
	if c.User == "" {
		c.User = sb.Command.User
	}
	return c.process(config, sb.Hostname)
}

// Stop asks sb's command to end by SIGTERM, kills it after grace, and returns when sb has ended. One that does not run is
// no error.
func (sb *Sandbox) Stop(ctx context.Context, grace time.Duration) error {
	for signalled := false; sb.Running(); {
		conn, err := sb.host.dialControl(ctx, &sb.Spec, controlRequest{Op: opStop, Grace: grace})
		if err == nil {
			defer conn.Close()
			return sb.Wait(ctx)
		}
		// It is still booting, or ending. The process of a run that has finished may be anybody's by now.
		if s := sb.State(); s.PID > 0 && s.Finished.IsZero() && !signalled && sb.Running() {
			if err := syscall.Kill(s.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stop sandbox %s: %w", sb.Name, err)
			}
			signalled = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stop sandbox %s: %w", sb.Name, ctx.Err())
		case <-time.After(waitEvery):
		}
	}
	return nil
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
			return sb.dir.remove()
		}
		if errors.Is(err, ErrRunning) && force {
			if err = sb.Stop(ctx, 0); err == nil {
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
