package virtiofs

import (
	"fmt"
	"io"
	"log"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A server carries out the FUSE requests of one guest.
type server struct {
	queues  int
	opts    fuse.MountOptions
	onInit  func()
	onFault func(error)

	spare  atomic.Int64  // workers that may still be started; less than 0 when the one that each queue has is too many
	bounce chan struct{} // a token for each big buffer in use; see bigBuffers
	faults atomic.Int64
	init   sync.Once

	ready chan struct{} // closed when raw is set
	raw   fuse.RawFileSystem

	session atomic.Pointer[session] // nil before FUSE_INIT and after FUSE_DESTROY
}

// A session is what one FUSE_INIT has negotiated. Each INIT begins a new one: a guest that has rebooted negotiates from
// scratch, and requests of the old session that are still in progress are not disturbed.
type session struct {
	ps         *fuse.ProtocolServer
	setxattrIn int // bytes of a SETXATTR before its name
}

func newServer(o Options) *server {
	s := &server{
		queues:  min(o.Queues, maxQueues),
		onInit:  o.OnInit,
		onFault: o.OnFault,
		bounce:  make(chan struct{}, bigBuffers),
		ready:   make(chan struct{}),
	}
	if s.queues <= 0 {
		s.queues = maxQueues
	}
	inFlight := o.InFlight
	if inFlight <= 0 {
		inFlight = defaultInFlight
	}
	s.spare.Store(int64(inFlight))
	if o.FUSE != nil {
		s.opts = *o.FUSE
	}
	if s.opts.Logger == nil {
		s.opts.Logger = log.New(io.Discard, "", 0)
	}
	if s.opts.PanicHandler == nil {
		s.opts.PanicHandler = func(p any) fuse.Status {
			s.fault(fmt.Errorf("panic in the file system: %v\n%s", p, debug.Stack()))
			return fuse.EIO
		}
	}
	// A file of the host cannot stand in for one of the guest.
	s.opts.DisabledCapabilities |= fuse.CAP_PASSTHROUGH
	return s
}

// provide sets the file system. It is called at most once.
func (s *server) provide(raw fuse.RawFileSystem) {
	s.raw = raw
	close(s.ready)
}

// takeSpare allows one more worker, or not.
func (s *server) takeSpare() bool {
	if s.spare.Add(-1) >= 0 {
		return true
	}
	s.spare.Add(1)
	return false
}

// fault reports what should not have happened. A guest can make it happen at will, so there is an end to it.
func (s *server) fault(err error) {
	if s.onFault != nil && s.faults.Add(1) <= maxFaults {
		s.onFault(err)
	}
}

// begin starts the session that the INIT of w asks for and answers it.
func (s *server) begin(w *worker) (int, fuse.Status) {
	opts := s.opts
	ses := &session{ps: fuse.NewProtocolServer(s.raw, &opts), setxattrIn: compatSetxattrIn}
	n, status := ses.ps.HandleRequest(w.inVec, w.outVec)
	if status.Ok() && n > outHeaderSize && w.replyStatus() == 0 {
		out := (*fuse.InitOut)(unsafe.Pointer(&w.reply[0]))
		if out.Flags64()&fuse.CAP_SETXATTR_EXT != 0 {
			ses.setxattrIn = int(unsafe.Sizeof(fuse.SetXAttrIn{}))
		}
		s.session.Store(ses)
	}
	return n, status
}

// interrupt asks ps to cancel the request with the given number, if it is in progress.
func interrupt(ps *fuse.ProtocolServer, unique uint64) {
	in := fuse.InterruptIn{Unique: unique}
	in.Length = uint32(unsafe.Sizeof(in))
	in.Opcode = opInterrupt
	var out [outHeaderSize]byte
	ps.HandleRequest([][]byte{unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in))}, [][]byte{out[:]})
}

// takeBounce waits until a big buffer may be used. It returns false when the run gives up its requests first.
func (s *server) takeBounce(r *run) bool {
	select {
	case s.bounce <- struct{}{}:
		return true
	case <-r.aborted:
		return false
	}
}

func (s *server) freeBounce() { <-s.bounce }

// wait waits for the file system. It returns false when the run gives up its requests first.
func (s *server) wait(r *run) bool {
	select {
	case <-s.ready:
		return true
	default:
	}
	select {
	case <-s.ready:
		return true
	case <-r.aborted:
		return false
	}
}
