// Package daemon is the one process per home directory that owns the cache: it resolves images, fetches them, and serves
// them as FUSE mounts on the host and as vhost-user-fs sockets to microVMs.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/chunkcache"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/db"
	"github.com/microsandbox/msb-fs/remote"
)

// Options are a daemon's settings.
type Options struct {
	IdleTimeout time.Duration // exit when nothing has been mounted, running, fetched or asked for so long; 0 = never
	// LockPatience is how long a daemon of the same home that is stopping, or that was killed and is not dead yet, is waited for.
	LockPatience time.Duration
	StopPatience time.Duration // how long what is under way may take to end once the daemon stops; 0 = 20 s
	Log          *slog.Logger
	Version      string
}

// daemon is what the handlers work on.
type daemon struct {
	Options
	home      api.Home
	started   time.Time
	notes     []string // what was cleaned up at the start
	images    *images
	cache     *chunkcache.Cache
	completer *completer
	mounts    *mounts
	sandboxes *sandboxes
	tasks     *tasks
	requests  atomic.Int64 // under way
	lastUse   atomic.Int64 // Unix nanoseconds of the end of the last request
	stop      context.CancelFunc
	dir       string         // of sockets
	closers   []func() error // of what is open, in the order of opening
}

// memoryLimit is what the garbage collector keeps the daemon's heap to if it can, bytes: it works harder near it instead of
// letting a burst of fetches double the heap. With what is mapped of the program and of indexes the daemon stays below 150 MB.
const memoryLimit = 108 << 20

// defaultStopPatience is less than a successor waits for its predecessor, and than a client for a daemon it stops.
const defaultStopPatience = 20 * time.Second

// ErrStuck is what Run fails with when something did not end although the daemon stops: the home is then still locked and its
// cache open, and the caller has to exit the process, which frees both. Nothing is lost by that, as by no kill.
var ErrStuck = errors.New("something does not end")

// Run serves home until ctx is done, it has been idle for long, or a client stops it. It fails when another daemon
// already serves home.
func Run(ctx context.Context, home api.Home, o Options) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	debug.SetMemoryLimit(memoryLimit)
	d, err := open(ctx, stop, home, o)
	if err != nil {
		return err
	}
	return d.run(ctx)
}

// open takes over home. stop is what ends ctx.
func open(ctx context.Context, stop context.CancelFunc, home api.Home, o Options) (_ *daemon, err error) {
	for _, dir := range []string{string(home), home.Cache("layers"), home.Cache("chunks"), home.Cache("trees"), home.Cache("blobs"), home.Cache("partial"), home.Sandboxes()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make home: %w", err)
		}
	}
	d := &daemon{Options: o, home: home, started: time.Now(), stop: stop, tasks: &tasks{ctx: ctx, log: o.Log}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.dir, err = home.Run(); err != nil {
		return nil, err
	}
	lock, err := lockHome(ctx, d.dir, o.LockPatience)
	if err != nil {
		return nil, err
	}
	d.closers = append(d.closers, lock.Close)
	store, err := db.Open(home.DB())
	if err != nil {
		return nil, err
	}
	d.closers = append(d.closers, store.Close)
	limit, err := cacheLimit(home)
	if err != nil {
		return nil, err
	}
	d.cache, err = chunkcache.Open(store, home.Cache("chunks"), chunkcache.Options{
		MaxBytes: limit, Warn: func(err error) { o.Log.Warn("cache", "err", err) },
	})
	if err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.cache.Close)

	spans := &spans{}
	registries := &registries{path: home.Config(), spans: spans, logins: &remote.Logins{Keyring: remote.DefaultKeyring, File: home.Logins()}}
	d.closers = append(d.closers, registries.close)
	d.images = &images{home: home, spans: spans, pins: pins{store}, registries: registries, cache: d.cache, log: o.Log, partials: partials{dir: home.Cache("partial")},
		open: map[string]*openImage{}, layers: map[string]*openLayer{}}
	d.completer = &completer{images: d.images, tasks: d.tasks, log: o.Log}
	d.mounts = &mounts{images: d.images, record: filepath.Join(d.dir, "mounts.json"), byDir: map[string]*mount{},
		left: map[string]bool{}, fault: func(v any) { o.Log.Error("panic while answering a request", "panic", v) }}
	d.sandboxes = &sandboxes{run: d.dir, byID: map[string]*sandbox{}}
	d.cleanUp(ctx, d.dir)
	return d, nil
}

// run serves until ctx is done and then lets go of the home.
func (d *daemon) run(ctx context.Context) error {
	err := d.serve(ctx, filepath.Join(d.dir, "daemon.sock"))
	if errors.Is(err, ErrStuck) {
		return err // who is stuck may be using any of it
	}
	return errors.Join(err, d.close())
}

// close closes what open has opened, the last first.
func (d *daemon) close() error {
	var errs []error
	for _, fn := range slices.Backward(d.closers) {
		errs = append(errs, fn())
	}
	return errors.Join(errs...)
}

// cacheLimit is config.json's cache.max_bytes, or half of the disk.
func cacheLimit(home api.Home) (int64, error) {
	config, err := remote.LoadConfig(home.Config())
	if err != nil {
		return 0, err
	}
	if config.CacheMaxBytes > 0 {
		return config.CacheMaxBytes, nil
	}
	return chunkcache.DefaultLimit(home.Cache("chunks"))
}

// lockHome keeps a second daemon away, from before it touches anything until this one has closed everything.
func lockHome(ctx context.Context, run string, patience time.Duration) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(run, "daemon.pid"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock home: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another msb-fs daemon serves this home (%s): %w", f.Name(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock home: %w", err)
	}
	fmt.Fprintln(f, os.Getpid())
	return f, nil
}

// cleanUp removes what a killed predecessor left.
func (d *daemon) cleanUp(ctx context.Context, run string) {
	for _, dir := range d.mounts.cleanUp(ctx) {
		d.notes = append(d.notes, "unmounted "+dir+", left by a daemon that was killed")
	}
	left, _ := filepath.Glob(filepath.Join(run, "sb-*"))
	if err := d.images.partials.cleanUp(time.Now()); err != nil {
		d.Log.Warn("clean up", "err", err)
	}
	unfinished, _ := filepath.Glob(filepath.Join(d.home.Cache("blobs"), ".new-*"))
	left = append(left, unfinished...)
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			d.Log.Warn("clean up", "err", err)
		}
	}
	for _, n := range d.notes {
		d.Log.Info(n)
	}
}

// serve answers on socket until ctx is done, then unmounts everything and waits for all that is under way.
func (d *daemon) serve(ctx context.Context, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old socket: %w", err)
	}
	ln, err := listenPrivate(socket)
	if err != nil {
		return err
	}
	// Requests end with ctx, so that streams which last as long as a sandbox do not keep the daemon from stopping.
	srv := &http.Server{Handler: d.handler(), BaseContext: func(net.Listener) context.Context { return ctx }}
	d.tasks.run("", func(ctx context.Context) { d.watchIdle(ctx) })
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	d.Log.Info("serving", "home", d.home, "socket", socket, "pid", os.Getpid())
	select {
	case err = <-served:
		d.stop()
		return errors.Join(err, d.end(ctx, srv))
	case <-ctx.Done():
		err = d.end(ctx, srv)
		<-served
		return err
	}
}

// end takes no more requests, unmounts everything and waits for what is under way, all within StopPatience.
func (d *daemon) end(ctx context.Context, srv *http.Server) error {
	patience := d.StopPatience
	if patience == 0 {
		patience = defaultStopPatience
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	// New clients must find nobody here, and start the next daemon, before this one is gone.
	stuck := srv.Shutdown(ctx)
	if err := srv.Close(); err != nil {
		d.Log.Error("stop", "err", err)
	}
	for _, m := range d.mounts.list() {
		if err := d.mounts.remove(ctx, m.Dir, true); err != nil {
			d.Log.Error("stop", "err", err)
		}
	}
	deadline, _ := ctx.Deadline()
	if tasks := d.tasks.wait(time.Until(deadline)); stuck != nil || len(tasks) > 0 {
		d.Log.Error("stopped in spite of what is under way", "requests", d.requests.Load(), "tasks", tasks)
		return fmt.Errorf("stop: %w: %d requests, %d tasks", ErrStuck, d.requests.Load(), len(tasks))
	}
	d.Log.Info("stopped")
	return nil
}

// listenPrivate listens on a socket that only this user can connect to from its first moment on.
func listenPrivate(path string) (net.Listener, error) {
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return ln, nil
}

// watchIdle stops the daemon once nobody has needed it for IdleTimeout.
func (d *daemon) watchIdle(ctx context.Context) {
	if d.IdleTimeout <= 0 {
		return
	}
	d.lastUse.Store(time.Now().UnixNano())
	tick := time.NewTicker(max(d.IdleTimeout/10, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if d.busy() {
			d.lastUse.Store(time.Now().UnixNano())
		} else if time.Since(time.Unix(0, d.lastUse.Load())) >= d.IdleTimeout {
			d.Log.Info("idle", "for", d.IdleTimeout)
			d.stop()
			return
		}
	}
}

// busy tells whether anybody needs the daemon now. One task is watchIdle's own.
func (d *daemon) busy() bool {
	return d.requests.Load() > 0 || len(d.mounts.list()) > 0 || len(d.sandboxes.list()) > 0 || len(d.tasks.list()) > 1
}
