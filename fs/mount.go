package fs

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// MountOptions are how a file system is offered to a kernel.
type MountOptions struct {
	Name     string // what is mounted, as df shows it: an image's reference
	ReadOnly bool
	// Private keeps other users out. They are let in otherwise where that is allowed: to root always, to an ordinary user
	// by user_allow_other in /etc/fuse.conf.
	Private bool
	// ReadAhead is how many bytes the kernel reads ahead in a file, 0 for 1 MiB. It is raised where root mounts.
	ReadAhead int
	// Extra and Disabled are fuse.CAP_* to ask for beyond, or not to ask for out of, what ServerOptions chooses. Writeback
	// caching is for a writable file system to ask for.
	Extra, Disabled uint64
	// Adjust may change what ServerOptions has chosen, for a file system that wants something else; nil leaves it.
	Adjust func(*fuse.MountOptions) *fuse.MountOptions
	// Panic is told of a panic while answering a request, which is answered EIO.
	Panic func(v any)
}

const (
	// maxRequest is the most bytes of one READ or WRITE.
	maxRequest = 512 << 10
	// maxBackground is how many read-ahead requests a kernel may have under way: enough to keep a long link busy.
	maxBackground    = 64
	defaultReadAhead = 1 << 20
)

// ServerOptions are the go-fuse settings that a file system of this module wants from its kernel, host's or guest's: no
// round trips for OPEN and OPENDIR, cached directories and symlinks, no invalidation of data by time stamps, big
// requests. Truncation at open time is not asked for: without OPEN it would be lost.
func ServerOptions(o MountOptions) *fuse.MountOptions {
	opts := &fuse.MountOptions{
		Name:                     "msb",
		FsName:                   o.Name,
		MaxWrite:                 maxRequest,
		MaxBackground:            maxBackground,
		DisableSplice:            true, // answers come from memory; a pipe would be one copy more
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_ASYNC_DIO | o.Extra,
		DisabledCapabilities:     fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_PASSTHROUGH | o.Disabled,
		Options:                  []string{"default_permissions"},
		Logger:                   log.New(io.Discard, "", 0),
		PanicHandler: func(v any) fuse.Status {
			if o.Panic != nil {
				o.Panic(v)
			}
			return fuse.EIO
		},
	}
	if opts.FsName == "" {
		opts.FsName = "msb"
	}
	if o.Adjust != nil {
		return o.Adjust(opts)
	}
	return opts
}

// Mounted is a mounted file system.
type Mounted struct {
	dir    string
	server *fuse.Server
	done   chan struct{} // closed when the server has ended
}

// Mount mounts raw at dir and serves it until it is unmounted, by Unmount or by anybody. It returns when dir is usable;
// ctx bounds that. Root mounts by itself, ordinary users through fusermount3. Devices and set-uid bits have no effect
// below dir.
func Mount(ctx context.Context, raw fuse.RawFileSystem, dir string, o MountOptions) (*Mounted, error) {
	at, err := filepath.Abs(dir)
	if err == nil {
		at, err = filepath.EvalSymlinks(at) // as the kernel's table will have it
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	dir = at
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts := ServerOptions(o)
	opts.AllowOther = !o.Private && (os.Geteuid() == 0 || allowOther())
	fd, err := attach(ctx, dir, opts, o.ReadOnly)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	answers := raw
	if s, ok := raw.(*statusFS); ok {
		answers = s.RawFileSystem
	}
	if s, ok := answers.(*server); ok {
		s.requests.cut = func() bool { return disconnected(fd) }
	}
	server, err := fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", fd), opts) // which means: mounted already
	if err != nil {
		_ = detach(dir)
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	m := &Mounted{dir: dir, server: server, done: make(chan struct{})}
	go func() {
		server.Serve()
		close(m.done)
	}()
	settlePoll(dir)
	if dev, err := deviceOf(dir); err == nil {
		n := o.ReadAhead
		if n == 0 {
			n = defaultReadAhead
		}
		// Only root may; without it reads are as big as the kernel's default of 128 KiB.
		_ = os.WriteFile("/sys/class/bdi/"+dev+"/read_ahead_kb", []byte(strconv.Itoa(n>>10)), 0)
	}
	return m, nil
}

// Done is closed when the file system is no longer served: it was unmounted, or its connection was cut.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Wait returns when the file system is no longer served.
func (m *Mounted) Wait() { <-m.done }

// Dir is where it is mounted.
func (m *Mounted) Dir() string { return m.dir }

// unmountGrace is how long an unmount waits for a file system in use before it is detached and its connection cut.
const unmountGrace = 500 * time.Millisecond

// Unmount unmounts it and waits until it is no longer served. A file system in use is detached: it goes from the file
// tree at once and whoever still uses it gets ENOTCONN.
func (m *Mounted) Unmount() error {
	select {
	case <-m.done:
		return nil
	default:
	}
	dev, _ := deviceOf(m.dir)
	err := m.plain()
	if err == nil {
		select {
		case <-m.done:
			return nil
		case <-time.After(unmountGrace): // still mounted in another namespace, or open
		}
	}
	abort(m.dir, dev)
	if err != nil {
		err = detach(m.dir)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	return m.ended()
}

// plain unmounts it unless it stays in use for a while.
func (m *Mounted) plain() error {
	ctx, cancel := context.WithTimeout(context.Background(), unmountGrace)
	defer cancel()
	return plainUnmount(ctx, m.dir)
}

// ended waits for the server.
func (m *Mounted) ended() error {
	select {
	case <-m.done:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("unmount %s: its server has not ended: requests are still being answered", m.dir)
	}
}
