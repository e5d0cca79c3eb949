package msb

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
)

// A sandbox that is to be removed when it ends is not removed before it has begun: its own supervisor looks it up first.
func TestEphemeralIsKeptUntilItRuns(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	s := newSpec(t, "once")
	s.Ephemeral = true
	d, lock, err := create(h.home, s)
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if _, err := h.Get("once"); err != nil {
		t.Errorf("before it has run: %v", err)
	}
	old := time.Now().Add(-2 * newGrace)
	if err := os.Chtimes(d.spec(), old, old); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Get("once"); !errors.Is(err, ErrNoSandbox) {
		t.Errorf("one that nobody has started for long: %v, want ErrNoSandbox", err)
	}
}

// Whoever looks whether a sandbox runs must not keep anybody from starting or removing it.
func TestLookingIsNotRunning(t *testing.T) {
	d, lock, err := create(api.Home(t.TempDir()), newSpec(t, "worker"))
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	looking, err := os.Open(d.lock())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(looking.Fd()), syscall.LOCK_SH); err != nil { // as running does
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { looking.Close() })
	if lock, err = d.tryLock(); err != nil {
		t.Fatal(err)
	}
	lock.Close()
}

// What is left of a removed sandbox does not keep the next one of its name from being removed.
func TestRemoveBesideAnUnfinishedRemoval(t *testing.T) {
	home := api.Home(t.TempDir())
	if err := os.MkdirAll(filepath.Join(home.Sandbox(newPrefix+"gone-worker"), "upper"), 0o700); err != nil {
		t.Fatal(err)
	}
	d, lock, err := create(home, newSpec(t, "worker"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := d.remove(); err != nil {
		t.Error(err)
	}
}

// A sandbox that was looked up, removed and made anew is not run by what was known of the first.
func TestSuperviseLooksAgain(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	_, lock, err := create(h.home, newSpec(t, "worker"))
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	first, err := h.Get("worker")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Remove(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	d, lock, err := create(h.home, newSpec(t, "worker"))
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if _, _, err := first.Supervise(context.Background(), RunOptions{}); !errors.Is(err, ErrNoSandbox) {
		t.Errorf("Supervise: %v, want ErrNoSandbox", err)
	}
	if _, err := os.Stat(d.state()); err == nil {
		t.Error("the second one was run")
	}
}

// The process of a run that has finished is somebody else's by now.
func TestStopSparesOldProcesses(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	d, lock, err := create(h.home, newSpec(t, "worker"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	child, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(d.state(), State{PID: child.Pid, Finished: time.Now()}); err != nil {
		t.Fatal(err)
	}
	sb, err := h.Get("worker")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*waitEvery)
	defer cancel()
	if err := sb.Stop(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop: %v, want it to wait", err)
	}
	if err := child.Kill(); err != nil {
		t.Error(err)
	}
	state, err := child.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if got := state.Sys().(syscall.WaitStatus).Signal(); got != syscall.SIGKILL {
		t.Errorf("the process was ended by %v, not by this test", got)
	}
}

// lateListener takes one connection after it has been closed, as a real one may that had taken it already.
type lateListener struct {
	net.Listener
	closed chan struct{}
	once   sync.Once
	conns  chan net.Conn
}

func (l *lateListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *lateListener) Accept() (net.Conn, error) {
	<-l.closed
	time.Sleep(50 * time.Millisecond) // until all others have been hung up on
	select {
	case c := <-l.conns:
		return c, nil
	default:
		return nil, net.ErrClosed
	}
}

// Whoever connects in a sandbox's last moment, and says nothing, does not keep it from ending.
func TestControlEndsBesideALateConnection(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	ln := &lateListener{closed: make(chan struct{}), conns: make(chan net.Conn, 1)}
	ln.conns <- far
	c := newControl(ln, func(error) {})
	c.serving.Go(c.accept)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		c.close()
	}()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Fatal("close waits for a connection that came too late")
	}
}

// A sandbox whose files a crash of the machine has emptied does not take the others with it, and is not passed over.
func TestDamagedSandboxIsOneOnly(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	for _, name := range []string{"bad", "good"} {
		_, lock, err := create(h.home, newSpec(t, name))
		if err != nil {
			t.Fatal(err)
		}
		lock.Close()
	}
	if err := os.WriteFile(dir(h.home.Sandbox("bad")).spec(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Get("good"); err != nil {
		t.Errorf("Get of a sound one: %v", err)
	}
	bad, err := h.Get("bad")
	if err != nil || !errors.Is(bad.Damaged(), ErrDamaged) {
		t.Fatalf("Get of a damaged one: %+v, %v", bad, err)
	}
	if all, err := h.List(); err != nil || len(all) != 2 || all[1].Damaged() != nil {
		t.Errorf("List: %v, %v", all, err)
	}
	if _, _, err := bad.Supervise(context.Background(), RunOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("run: %v, want ErrDamaged", err)
	}
	if err := bad.Remove(context.Background(), false); err != nil {
		t.Error(err)
	}
}

// One that removes itself when it is stopped is removed: that is what was asked for.
func TestRemoveOfAnEphemeralOne(t *testing.T) {
	h := &Host{home: api.Home(t.TempDir())}
	d, lock, err := create(h.home, newSpec(t, "once"))
	if err != nil {
		t.Fatal(err)
	}
	sb, err := h.Get("once")
	if err != nil {
		t.Fatal(err)
	}
	removed := make(chan error, 1)
	time.AfterFunc(50*time.Millisecond, func() {
		removed <- d.remove()
		lock.Close()
	})
	if err := sb.Remove(context.Background(), true); err != nil {
		t.Error(err)
	}
	if err := <-removed; err != nil {
		t.Error(err)
	}
	if err := sb.Remove(context.Background(), true); !errors.Is(err, ErrNoSandbox) {
		t.Errorf("again: %v, want ErrNoSandbox", err)
	}
}
