package msb

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
	"github.com/microsandbox/msb-fs/vmboot/usernet"
)

// A pool is a process that keeps VMs booted which have no image yet. Each VM belongs to a process of its own, its keeper,
// which listens on a socket in the home's run directory; a launcher that finds one takes it by connecting, hands over the
// sandbox with its standard streams, and from then on the keeper is that sandbox's supervisor. So a keeper serves one
// sandbox in its life, outlives the pool while it does, and ends with the pool while it does not.

// PoolOptions say what VMs a pool keeps. A sandbox gets one only if it asks for the same.
type PoolOptions struct {
	Size      int
	CPUs      int    // 0 is 1
	MemoryMiB int    // 0 is 512
	Kernel    string // "" is the one that setup got
	Accel     string // auto, kvm or tcg; "" is auto
	// Ready is told how many VMs are ready, whenever that changes; Failed why one could not be booted. Both may be nil, and
	// are not called concurrently.
	Ready  func(n int)
	Failed func(error)
}

// ErrPoolRunning is wrapped by errors about a home that has a pool of such VMs already.
var ErrPoolRunning = errors.New("there is a pool already")

const (
	// poolRetry is how long a pool waits after a VM that did not boot.
	poolRetry = 2 * time.Second
	// orderVersion changes when launchers and keepers could misunderstand each other.
	orderVersion = 1
	// keeperPatience is how long a keeper's VM may take to be ready.
	keeperPatience = 2 * time.Minute
)

// shape is what a pooled VM is like, and a short name for it that is part of its socket's.
type shape struct {
	spec Spec // with CPUs, MemoryMiB, Kernel and Accel only
	name string
}

// newShape returns the shape of what s asks for.
func newShape(ctx context.Context, s *Spec) (shape, error) {
	sh := shape{spec: Spec{CPUs: max(s.CPUs, 1), MemoryMiB: s.MemoryMiB, Kernel: s.Kernel, Accel: s.Accel, Net: string(usernet.None)}}
	if sh.spec.MemoryMiB == 0 {
		sh.spec.MemoryMiB = vmboot.DefaultMemoryMiB
	}
	kernel, accel, err := s.engine(ctx)
	if err != nil {
		return sh, err
	}
	made, err := vmboot.Identity(kernel)
	if err != nil {
		return sh, err
	}
	// The words between numbers keep 1 and 12 from being 11 and 2.
	sum := sha256.Sum256(fmt.Append(nil, orderVersion, " cpus ", sh.spec.CPUs, " MiB ", sh.spec.MemoryMiB, accel, made))
	sh.name = hex.EncodeToString(sum[:4])
	return sh, nil
}

// poolDir is where the keepers listen.
func (h *Host) poolDir() (string, error) {
	run, err := h.home.Run()
	return filepath.Join(run, "pool"), err
}

const keeperSocket = ".vm" // what the names of keepers' sockets end in; short, as api.Home.Run has it

// Pool keeps o.Size VMs ready until ctx ends. It returns an error only where there can be no pool.
func (h *Host) Pool(ctx context.Context, o PoolOptions) error {
	sh, err := newShape(ctx, &Spec{CPUs: o.CPUs, MemoryMiB: o.MemoryMiB, Kernel: o.Kernel, Accel: o.Accel})
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	dir, err := h.poolDir()
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, sh.name+".lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("pool: %w: of VMs with %d CPUs and %d MiB in %s", ErrPoolRunning, sh.spec.CPUs, sh.spec.MemoryMiB, h.home)
	}
	p := &pool{host: h, shape: sh, dir: dir, options: o}
	var keepers sync.WaitGroup
	for range o.Size {
		keepers.Go(func() { p.keep(ctx) })
	}
	keepers.Wait()
	return nil
}

type pool struct {
	host    *Host
	shape   shape
	dir     string
	options PoolOptions

	mu    sync.Mutex
	ready int // guarded by mu
}

// keep has one VM ready after another.
func (p *pool) keep(ctx context.Context) {
	for ctx.Err() == nil {
		err := p.keepOne(ctx)
		if err == nil || ctx.Err() != nil {
			continue
		}
		p.mu.Lock()
		if p.options.Failed != nil {
			p.options.Failed(err)
		}
		p.mu.Unlock()
		select {
		case <-time.After(poolRetry):
		case <-ctx.Done():
		}
	}
}

func (p *pool) count(by int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready += by
	if p.options.Ready != nil {
		p.options.Ready(p.ready)
	}
}

// Lines that a keeper says to its pool.
const (
	keeperReady = "ready"
	keeperTaken = "taken"
)

// keepOne starts a keeper and returns when its VM has been taken, or is no more.
func (p *pool) keepOne(ctx context.Context) error {
	binary, err := api.Binary("msb-launch")
	if err != nil {
		return err
	}
	orders, err := json.Marshal(p.shape.spec)
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, "keeper", "--home", string(p.host.home))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var complaint said
	cmd.Stderr = &complaint
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	// A keeper that nobody has taken ends when its input does, with this process at the latest.
	defer context.AfterFunc(ctx, func() { stdin.Close() })()
	if _, err := stdin.Write(append(orders, '\n')); err != nil {
		stdin.Close()
	}
	ready, taken := false, false
	for lines := bufio.NewScanner(stdout); !taken && lines.Scan(); {
		switch lines.Text() {
		case keeperReady:
			ready = true
			p.count(1)
		case keeperTaken:
			taken = true
		}
	}
	if ready {
		p.count(-1)
	}
	if taken {
		go func() { // lasts as long as the sandbox, or this process
			io.Copy(io.Discard, stdout)
			cmd.Wait()
			stdin.Close()
		}()
		return nil
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("pool: %w: %s", err, bytes.TrimSpace(complaint.text))
	}
	return nil
}

// said keeps the beginning of what a keeper says on its standard error, for a message.
type said struct{ text []byte }

func (s *said) Write(p []byte) (int, error) {
	s.text = append(s.text, p[:min(len(p), max(0, 1024-len(s.text)))]...)
	return len(p), nil
}
