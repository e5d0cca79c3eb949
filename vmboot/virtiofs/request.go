package virtiofs

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	// maxPrivate bounds what is copied of a request, and of a reply, other than the data of READ and WRITE: the largest
	// extended attribute and then some.
	maxPrivate = 128 << 10
	// keepBuffer is the largest private buffer that a worker keeps for its next request.
	keepBuffer = 16 << 10
	// bigBuffers is how many READs and WRITEs of more than maxPrivate bytes of scattered memory are worked on at a time:
	// ProtocolServer may hand the file system one contiguous buffer for each. Together with what is above, a guest
	// makes us use no more than some 40 MiB, whatever it does.
	bigBuffers = 16
	// smallReply is enough for all replies of fixed size and for a symlink's target.
	smallReply = 4096 + 512
)

// fuseBuffers are the private copies of a worker's request and reply. They are reused from request to request.
type fuseBuffers struct {
	header [16]byte // fuse.OutHeader
	in     []byte
	reply  []byte // what follows the header, except for READ
	inVec  [][]byte
	outVec [][]byte
}

// A request is what the header of a FUSE request says, checked.
type request struct {
	op     uint32
	unique uint64
	length int // bytes, of which the first fixed are structures
	fixed  int
}

// serve carries out the request in w's chain and writes the reply into it. It returns how many bytes it has written.
// done is false when the request was given up because the queue is being stopped; it had no effect then.
func (s *server) serve(r *run, w *worker) (n int, done bool) {
	if w.bad != nil {
		s.fault(fmt.Errorf("queue %d: %w", r.queue.index, w.bad))
		return 0, true
	}
	defer w.shrink()
	q, errno := w.parse()
	if errno == 0 && q.op == opInit && s.onInit != nil {
		s.init.Do(s.onInit)
	}
	if errno == 0 {
		errno = w.prepareReply(q)
	}
	if errno != 0 {
		if errno != syscall.ENOSYS && errno != syscall.ENAMETOOLONG { // which an honest program can cause
			s.fault(fmt.Errorf("queue %d: FUSE request %d of %d bytes, %d writable: %w", r.queue.index, q.op, w.chain.inLen, w.chain.outLen, errno))
		}
		if w.chain.inLen < inHeaderSize {
			return 0, true // an answer to what?
		}
		return w.fail(q, errno), true
	}
	if q.op == opInit && !s.wait(r) {
		return 0, false
	}
	if w.scattered(q) {
		if !s.takeBounce(r) {
			return 0, false
		}
		defer s.freeBounce()
	}
	n, status := s.dispatch(w, q)
	switch {
	case n == 0 && status.Ok(), isForget(q.op):
		return 0, true
	case n < outHeaderSize: // it does not fit together: too small for its own sizes, before INIT
		return w.fail(q, syscall.EIO), true
	case r.aborting() && syscall.Errno(-w.replyStatus()) == syscall.EINTR:
		return 0, false
	}
	return w.finish(q, n), true
}

// dispatch hands the request to the file system. The result is ProtocolServer.HandleRequest's.
func (s *server) dispatch(w *worker, q request) (n int, status fuse.Status) {
	if q.op == opInit {
		return s.begin(w)
	}
	ses := s.session.Load()
	if ses == nil || q.op == opSetxattr && !w.checkSetxattr(ses.setxattrIn) {
		return 0, fuse.EIO
	}
	if q.op == opDestroy {
		s.session.Store(nil)
	}
	w.begin(ses.ps, q.unique)
	defer w.end()
	// ProtocolServer catches the panics of the file system's methods, but not those of a ReadResult that it returned.
	defer func() {
		if p := recover(); p != nil {
			n, status = 0, s.opts.PanicHandler(p)
		}
	}()
	return ses.ps.HandleRequest(w.inVec, w.outVec)
}

// parse copies and checks the request. An error is what to answer; what of the request is known is returned as well.
func (w *worker) parse() (q request, errno syscall.Errno) {
	w.outVec = w.outVec[:0]
	if w.chain.inLen < inHeaderSize {
		return q, syscall.EIO
	}
	w.in = grow(w.in, smallReply)
	have := copyFrom(w.in[:writeInSize], w.chain.in, 0)
	head := w.in[:have]
	q.length = int(binary.LittleEndian.Uint32(head[0:]))
	q.op = binary.LittleEndian.Uint32(head[4:])
	q.unique = binary.LittleEndian.Uint64(head[8:])
	fixed, ok := fixedSize(q.op)
	if !ok {
		return q, syscall.ENOSYS
	}
	q.fixed = fixed
	if q.length > w.chain.inLen || q.length < fixed {
		return q, syscall.EIO
	}
	switch q.op {
	case opWrite:
		return q, w.takeWrite(q, head)
	case opInit:
		if binary.LittleEndian.Uint32(head[40:]) != 7 || binary.LittleEndian.Uint32(head[44:]) < initMinor {
			return q, syscall.EIO
		}
	}
	if q.length > maxPrivate {
		return q, syscall.EIO
	}
	// The header is not copied again: it must not become another than the one that was checked.
	w.in = grow(w.in, q.length)
	copyFrom(w.in[min(have, q.length):q.length], w.chain.in, min(have, q.length))
	w.inVec = append(w.inVec[:0], w.in[:q.length])
	return q, checkNames(q.op, w.in[fixed:q.length])
}

// takeWrite makes the request of its copied head and the data where it is, in the guest's memory.
func (w *worker) takeWrite(q request, head []byte) syscall.Errno {
	size := int(binary.LittleEndian.Uint32(head[inHeaderSize+16:]))
	if size > q.length-writeInSize {
		return syscall.EIO
	}
	w.inVec = appendRange(append(w.inVec[:0], head), w.chain.in, writeInSize, size)
	return 0
}

// scattered says that q is a READ or WRITE of more than maxPrivate bytes in several pieces.
func (w *worker) scattered(q request) bool {
	switch q.op {
	case opRead:
		return len(w.outVec) > 2 && w.chain.outLen > maxPrivate+outHeaderSize
	case opWrite:
		return len(w.inVec) > 2 && w.chain.inLen > maxPrivate+writeInSize
	}
	return false
}

// checkSetxattr checks that the value is as long as the request says. fixed is how much comes before the name.
func (w *worker) checkSetxattr(fixed int) bool {
	p := w.inVec[0]
	if len(p) < fixed {
		return false
	}
	size := int(binary.LittleEndian.Uint32(p[inHeaderSize:]))
	for i, c := range p[fixed:] {
		if c == 0 {
			return i > 0 && len(p)-fixed-i-1 == size
		}
	}
	return false
}

// prepareReply lays out where the reply goes: always a private header; for READ the guest's memory after it, for all
// others a private buffer.
func (w *worker) prepareReply(q request) syscall.Errno {
	w.outVec = append(w.outVec[:0], w.header[:])
	if isForget(q.op) || q.op == opInterrupt {
		return 0
	}
	room := w.chain.outLen - outHeaderSize
	if room < 0 {
		return syscall.EIO
	}
	size := smallReply
	switch q.op {
	case opRead:
		w.outVec = appendRange(w.outVec, w.chain.out, outHeaderSize, room)
		return 0
	case opReaddir, opReaddirplus, opGetxattr, opListxattr:
		// struct fuse_getxattr_in has its size where fuse_read_in has fh.
		at := inHeaderSize
		if q.op == opReaddir || q.op == opReaddirplus {
			at += 16
		}
		asked := binary.LittleEndian.Uint32(w.in[at:])
		if int(asked) > room {
			return syscall.EIO
		}
		size = min(int(asked), maxPrivate) // directories may be listed in smaller pieces, and no attribute is longer
		binary.LittleEndian.PutUint32(w.in[at:], uint32(size))
		size = max(size, smallReply)
	case opIoctl:
		size = maxPrivate
	}
	w.reply = grow(w.reply, min(size, room))
	w.outVec = append(w.outVec, w.reply[:min(size, room)])
	return 0
}

// finish copies the reply of n bytes to the guest, the header last, and returns n.
func (w *worker) finish(q request, n int) int {
	if int(binary.LittleEndian.Uint32(w.header[:])) != n || n > w.chain.outLen {
		if w.chain.outLen < outHeaderSize {
			return 0
		}
		return w.fail(q, syscall.EIO) // the file system answered more than there is room for
	}
	if q.op != opRead && n > outHeaderSize {
		copyTo(w.chain.out, outHeaderSize, w.reply[:n-outHeaderSize])
	}
	copyTo(w.chain.out, 0, w.header[:])
	return n
}

// fail answers the request with an error, if it is one that is answered and there is room for it.
func (w *worker) fail(q request, errno syscall.Errno) int {
	if w.chain.outLen < outHeaderSize || isForget(q.op) {
		return 0
	}
	binary.LittleEndian.PutUint32(w.header[0:], uint32(outHeaderSize))
	binary.LittleEndian.PutUint32(w.header[4:], uint32(-int32(errno)))
	binary.LittleEndian.PutUint64(w.header[8:], q.unique)
	copyTo(w.chain.out, 0, w.header[:])
	return outHeaderSize
}

// replyStatus is the error of the reply, zero or a negative errno.
func (w *worker) replyStatus() int32 {
	return int32(binary.LittleEndian.Uint32(w.header[4:]))
}

// shrink lets go of buffers that only an unusual request needs.
func (b *fuseBuffers) shrink() {
	if cap(b.in) > keepBuffer {
		b.in = nil
	}
	if cap(b.reply) > keepBuffer {
		b.reply = nil
	}
}

// begin notes what w is about to carry out, so that it can be interrupted.
func (w *worker) begin(ps *fuse.ProtocolServer, unique uint64) {
	w.mu.Lock()
	w.ps, w.unique = ps, unique
	w.mu.Unlock()
}

func (w *worker) end() {
	w.mu.Lock()
	w.ps = nil
	w.mu.Unlock()
}

// interrupt cancels what w is carrying out, if it has begun.
func (w *worker) interrupt() {
	w.mu.Lock()
	ps, unique := w.ps, w.unique
	w.mu.Unlock()
	if ps != nil {
		interrupt(ps, unique)
	}
}

// grow returns b with a length of at least n. What was in b is kept.
func grow(b []byte, n int) []byte {
	if n <= cap(b) {
		return b[:cap(b)]
	}
	bigger := make([]byte, n)
	copy(bigger, b)
	return bigger
}

// copyFrom copies the bytes of iov from offset off into p and returns how many there were.
func copyFrom(p []byte, iov [][]byte, off int) (n int) {
	for _, b := range iov {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		n += copy(p[n:], b[off:])
		off = 0
	}
	return n
}

// copyTo copies p to offset off of iov, which is long enough.
func copyTo(iov [][]byte, off int, p []byte) {
	for _, b := range iov {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		p = p[copy(b[off:], p):]
		off = 0
	}
}

// appendRange appends bytes [off, off+n) of src to dst.
func appendRange(dst, src [][]byte, off, n int) [][]byte {
	for _, b := range src {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		b = b[off:]
		off = 0
		if b = b[:min(len(b), n)]; len(b) > 0 {
			dst = append(dst, b)
		}
		n -= len(b)
	}
	return dst
}
