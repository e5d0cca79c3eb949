package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startTimeout bounds how long a daemon may take to listen: it opens a database, which after a kill replays its log.
const startTimeout = 60 * time.Second

// Connect returns a client of home's daemon. When none listens it starts one, with daemonArgs.
func Connect(ctx context.Context, home Home, daemonArgs ...string) (*Client, error) {
	socket, err := home.Socket()
	if err != nil {
		return nil, err
	}
	if c, err := answering(ctx, socket); c != nil || err != nil {
		return c, err
	}
	// One starter at a time: a second one waits here and then finds the first one's daemon.
	lock, err := lockFile(ctx, filepath.Join(filepath.Dir(socket), "start.lock"))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if c, err := answering(ctx, socket); c != nil || err != nil {
		return c, err
	}
	if err := startDaemon(ctx, home, socket, daemonArgs); err != nil {
		return nil, err
	}
	return Dial(socket), nil
}

// Running returns a client of home's daemon if one answers.
func Running(ctx context.Context, home Home) (*Client, bool) {
	socket, err := home.Socket()
	if err != nil {
		return nil, false
	}
	c, err := answering(ctx, socket)
	return c, c != nil && err == nil
}

// answerPatience is how long a daemon that takes connections may take to say a word.
const answerPatience = 10 * time.Second

// answering returns a client of the daemon that answers on socket, nil if there is none. It is asked, and not just connected
// to: one that is being killed may take a connection that nobody will ever answer on.
func answering(ctx context.Context, socket string) (*Client, error) {
	c := Dial(socket)
	asking, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	var s Status
	err := c.Call(asking, "GET", "/v1/status", nil, &s)
	if err == nil {
		return c, nil
	}
	c.Close()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if asking.Err() != nil {
		return nil, fmt.Errorf("the msb-fs daemon on %s does not answer: see its log beside it, or kill it", socket)
	}
	return nil, nil
}

// lockFile opens path with an exclusive flock, which closing it releases.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock daemon start: %w", err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock daemon start: %w", err)
		}
		if err := pause(ctx); err != nil {
			f.Close()
			return nil, err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Millisecond):
		return nil
	}
}

// startDaemon runs `msb-fs daemon` in a session of its own and returns when it listens.
func startDaemon(ctx context.Context, home Home, socket string, args []string) error {
	binary, err := Binary("msb-fs")
	if err != nil {
		return err
	}
	// The log starts afresh with each daemon, so that it cannot grow for ever and its last line is this daemon's. What the one before
	// had to say, which may have died of it, is kept.
	if err := os.Rename(home.Log(), home.LastLog()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keep the last daemon's log: %w", err)
	}
	log, err := os.OpenFile(home.Log(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open daemon log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(binary, append([]string{"daemon", "--foreground", "--home", string(home)}, args...)...)
	cmd.Dir = "/" // so that it keeps no directory busy
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start msb-fs daemon: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		c, err := answering(ctx, socket)
		if err != nil {
			return fmt.Errorf("start msb-fs daemon: %w", err)
		}
		if c != nil {
			c.Close()
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("start msb-fs daemon: %s", lastLine(home.Log()))
		default:
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("start msb-fs daemon: not listening: %w; see %s", err, home.Log())
		}
	}
}

// Binary finds a program of this project beside the running one, else on the PATH.
func Binary(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if fi, err := os.Stat(beside); err == nil && fi.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s not found beside this program or on the PATH: install msb-fs and msb-launch together", name)
	}
	return path, nil
}

func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return last
	}
	return "it ended at once; see " + path
}

// Stop ends home's daemon, if one runs, and returns when it is gone.
func Stop(ctx context.Context, home Home, wait time.Duration) error {
	client, ok := Running(ctx, home)
	if !ok {
		return nil
	}
	defer client.Close()
	var s Status
	if err := client.Call(ctx, "GET", "/v1/status", nil, &s); err != nil {
		return err
	}
	if err := client.Call(ctx, "POST", "/v1/stop", nil, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	// Its pid lives on in the lock file: whoever can take the lock knows that it has closed everything.
	run, err := home.Run()
	if err != nil {
		return err
	}
	lock, err := lockFile(ctx, filepath.Join(run, "daemon.pid"))
	if err != nil {
		return fmt.Errorf("msb-fs daemon (pid %d) does not stop: %w", s.PID, err)
	}
	return lock.Close()
}
