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
}

// memoryLimit is what the garbage collector keeps the daemon's heap to if it can, bytes: it works harder near it instead of
// letting a burst of fetches double the heap.
const memoryLimit = 128 << 20

// Run serves home until ctx is done, it has been idle for long, or a client stops it. It fails when another daemon
// already serves home.
func Run(ctx context.Context, home api.Home, o Options) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	debug.SetMemoryLimit(memoryLimit)
	for _, dir := range []string{string(home), home.Cache("layers"), home.Cache("chunks"), home.Cache("trees"), home.Sandboxes()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make home: %w", err)
		}
	}
	run, err := home.Run()
	if err != nil {
		return err
	}
	lock, err := lockHome(ctx, run, o.LockPatience)
	if err != nil {
		return err
	}
	defer lock.Close()

	store, err := db.Open(home.DB())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	d := &daemon{Options: o, home: home, started: time.Now(), stop: stop, tasks: &tasks{ctx: ctx}}
	limit, err := cacheLimit(home)
	if err != nil {
		return err
	}
	d.cache, err = chunkcache.Open(store, home.Cache("chunks"), chunkcache.Options{
		MaxBytes: limit, Warn: func(err error) { o.Log.Warn("cache", "err", err) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.cache.Close()) }()

	registries := &registries{path: home.Config(), logins: &remote.Logins{Keyring: remote.DefaultKeyring, File: home.Logins()}}
	defer func() { err = errors.Join(err, registries.close()) }()
	d.images = &images{home: home, pins: pins{store}, registries: registries, cache: d.cache, log: o.Log,
		open: map[string]*openImage{}, layers: map[string]*openLayer{}}
	d.completer = &completer{images: d.images, tasks: d.tasks, log: o.Log}
	d.mounts = &mounts{images: d.images, record: filepath.Join(run, "mounts.json"), byDir: map[string]*mount{},
		left: map[string]bool{}, fault: func(v any) { o.Log.Error("panic while answering a request", "panic", v) }}
	d.sandboxes = &sandboxes{run: run, byID: map[string]*sandbox{}}
	d.cleanUp(ctx, run)
	return d.serve(ctx, filepath.Join(run, "daemon.sock"))
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
	case <-ctx.Done():
		// New clients must find nobody here, and start the next daemon, before this one is gone.
		shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		err = errors.Join(srv.Shutdown(shutdown), srv.Close())
		cancel()
		<-served
	}
	d.stop()
	for _, m := range d.mounts.list() {
		if e := d.mounts.remove(context.WithoutCancel(ctx), m.Dir); e != nil {
			d.Log.Error("stop", "err", e)
		}
	}
	d.tasks.wg.Wait()
	d.Log.Info("stopped")
	return err
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
