package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/microsandbox/msb-fs/cow"
	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot/virtiofs"
)

// sandboxes are the images that are served to microVMs. It is safe for concurrent use.
type sandboxes struct {
	run string // directory of sockets

	mu   sync.Mutex
	byID map[string]*sandbox
}

// sandbox is one image with its upper, served on one vhost-user-fs socket.
type sandbox struct {
	id     string
	upper  string // guarded by nothing: known before the image is open, and used after
	limit  int64  // bytes that the upper may take; 0: no limit; as upper
	socket string
	later  chan api.SandboxRequest // what s is to show, where that is said later; nil of others
	given  bool                    // it has been said; guarded by sandboxes.mu

	mu    sync.Mutex
	image *openImage // nil until it is resolved
	base  int64      // bytes that had been fetched for the image before it was asked for
	start *start     // nil until it is known

	booted  sync.Once
	up      chan struct{} // closed when the guest has asked for its root
	started sync.Once     // the command is up, or as good as
}

// kernelUp is called, any number of times, when the guest asks for its root.
func (s *sandbox) kernelUp() { s.booted.Do(func() { close(s.up) }) }

var sandboxID = regexp.MustCompile(`^[a-z0-9]{1,16}$`)

// reserve enters a sandbox and gives it a directory for its sockets.
func (ss *sandboxes) reserve(req api.SandboxRequest) (*sandbox, error) {
	if !sandboxID.MatchString(req.ID) {
		return nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("sandbox id %q is not 1-16 letters and digits", req.ID)}
	}
	if !req.Later {
		if err := absolute("upper directory", req.Upper); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(ss.run, "sb-"+req.ID)
	s := &sandbox{id: req.ID, upper: req.Upper, limit: req.Limit, socket: filepath.Join(dir, "fs.sock"), up: make(chan struct{})}
	if req.Later {
		s.later = make(chan api.SandboxRequest, 1)
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for id, other := range ss.byID { // an id whose directory is in use is taken, too
		if id == s.id || other.id == s.id {
			return nil, &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("sandbox %s is served already", s.id)}
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make sandbox's run directory: %w", err)
	}
	ss.byID[s.id] = s
	return s, nil
}

func (ss *sandboxes) forget(s *sandbox) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	maps.DeleteFunc(ss.byID, func(_ string, other *sandbox) bool { return other == s })
	return os.RemoveAll(filepath.Dir(s.socket))
}

func (ss *sandboxes) list() []*sandbox {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	out := make([]*sandbox, 0, len(ss.byID))
	for _, s := range ss.byID {
		out = append(out, s)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].id < out[j].id })
	return out
}

func (ss *sandboxes) get(id string) *sandbox {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.byID[id]
}

// begins records what s is starting.
func (s *sandbox) begins(st *start) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.start = st
}

// starting returns what s is starting, and of which image; nil until that is known.
func (s *sandbox) starting() (*start, *openImage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.start, s.image
}

// usage is what s has used so far, and of which image; zero until that is open.
func (s *sandbox) usage() (api.Usage, string) {
	s.mu.Lock()
	o, base := s.image, s.base
	s.mu.Unlock()
	if o == nil {
		return api.Usage{}, ""
	}
	return o.usage(base), o.Reference
}

// serve shows the image that open yields, and s's upper over it, to the one VM that connects to s's socket. The VM may
// connect before the image is there: its first request waits. It calls listening when the VM may connect and kernelUp when
// the guest asks for its root, tells fault what no honest guest does, and returns when the VM or ctx ends.
func (s *sandbox) serve(ctx context.Context, listening, kernelUp func(), fault func(any), open func(context.Context) (*openImage, error)) (err error) {
	// The socket's file is removed by forget, with its directory.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for the VM: %w", err)
	}
	defer ln.Close()
	listening()
	var upper *cow.FS
	defer func() {
		if upper != nil {
			err = errors.Join(err, upper.Close())
		}
	}()
	return virtiofs.Serve(ctx, ln, func(ctx context.Context) (fuse.RawFileSystem, error) {
		o, err := open(ctx)
		if err != nil {
			return nil, err
		}
		upper, err = cow.New(o.tree, s.upper, cow.Options{LowerDigest: o.Digest, Bytes: s.limit})
		if err != nil {
			return nil, err
		}
		return upper, nil
	}, virtiofs.Options{FUSE: fs.ServerOptions(fs.MountOptions{Name: s.id, Adjust: cow.ServerOptions, Panic: fault}), OnInit: kernelUp, OnFault: func(err error) { fault(err) }})
}

// opened records that s's image is open.
func (s *sandbox) opened(o *openImage, base int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.image, s.base = o, base
}
