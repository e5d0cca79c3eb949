package msb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/vmboot"
)

// How a launcher hands a sandbox to a keeper, on a connection to its socket: one byte that carries the descriptors, an order,
// and then wishes; in return it gets sayings. All are JSON. It begins when both know of it. Both run as the same user: nobody else can reach the socket.

// order is the sandbox, locked by the first descriptor. The others are those of its standard streams that it has.
type order struct {
	Dir      dir
	Spec     Spec
	Start    time.Time
	Registry Registry
	Pull     PullPolicy
	Verify   string
	Streams  [3]bool
}

// wish is what a launcher wants: that the keeper begins, and then of the command.
type wish struct {
	Begin  bool         `json:",omitempty"`
	Signal int          `json:",omitempty"`
	Resize *vmboot.Size `json:",omitempty"`
}

// saying is what a keeper tells: one field is set.
type saying struct {
	Taken   bool    `json:",omitempty"` // the VM is the sandbox's
	Started bool    `json:",omitempty"` // its command runs
	Ended   *ending `json:",omitempty"` // it is over
}

// ending is how a sandbox's run ended.
type ending struct {
	Status        vmboot.Status
	Timing        Timing
	Image, Digest string // the pin
	Failure       started
}

// received is an order as a keeper has it. It owns the files.
type received struct {
	order   order
	lock    *os.File
	streams [3]*os.File
	wishes  *json.Decoder
}

const (
	// handoverPatience is how long either side waits for the other to say what it must say at once.
	handoverPatience = 2 * time.Second
	// maxDescriptors are those of an order: a lock and three streams.
	maxDescriptors = 4
)

func (r *received) close() {
	for _, f := range append(r.streams[:], r.lock) {
		if f != nil {
			f.Close()
		}
	}
}

func receiveOrder(conn *net.UnixConn) (*received, error) {
	conn.SetReadDeadline(time.Now().Add(handoverPatience))
	defer conn.SetReadDeadline(time.Time{})
	control := make([]byte, syscall.CmsgSpace(4*maxDescriptors))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return nil, err
	}
	files, err := descriptors(control[:n])
	r := &received{wishes: json.NewDecoder(conn)}
	r.wishes.DisallowUnknownFields() // what a newer launcher asks for and we do not know of would not happen
	if err == nil {
		err = r.wishes.Decode(&r.order)
	}
	if err == nil {
		err = r.sort(files)
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
	}
	return r, err
}

func descriptors(control []byte) (files []*os.File, err error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files, nil
}

// sort says which of files is what, and closes those that the order does not speak of.
func (r *received) sort(files []*os.File) error {
	missing := errors.New("an order without its descriptors")
	next := func() (*os.File, error) {
		if len(files) == 0 {
			return nil, missing
		}
		f := files[0]
		files = files[1:]
		return f, nil
	}
	var err error
	if r.lock, err = next(); err != nil {
		return err
	}
	for i, given := range r.order.Streams {
		if !given {
			continue
		}
		if r.streams[i], err = next(); err != nil {
			return err
		}
	}
	for _, surplus := range files {
		surplus.Close()
	}
	return nil
}

// sayer writes sayings. It is safe for concurrent use. A launcher that has gone is noticed by who reads from it.
type sayer struct {
	mu sync.Mutex
	to *json.Encoder
}

func newSayer(w io.Writer) *sayer { return &sayer{to: json.NewEncoder(w)} }

func (s *sayer) say(what any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to.Encode(what)
}

// run runs s, whose directory d is locked by lock, in a VM of the pool if there is one for it, else in one of its own.
func (h *Host) run(ctx context.Context, start time.Time, d dir, lock *os.File, s *Spec, o RunOptions) (vmboot.Status, Timing, error) {
	taken, why := h.take(ctx, start, d, lock, s, o)
	if taken == nil {
		status, timing, err := h.supervise(ctx, start, d, s, o)
		timing.Pool = why
		return status, timing, err
	}
	defer taken.conn.Close()
	end, err := taken.await(ctx, o)
	if err != nil {
		return vmboot.Status{}, Timing{}, err
	}
	s.Image, s.Digest = end.Image, end.Digest
	end.Timing.Pool = "a VM of the pool"
	return end.Status, end.Timing, end.Failure.err()
}

// take hands s to a keeper of the pool. Where there is none for it, it says why; "" if there is no pool at all.
func (h *Host) take(ctx context.Context, start time.Time, d dir, lock *os.File, s *Spec, o RunOptions) (_ *handed, why string) {
	pool, err := h.poolDir()
	if err != nil {
		return nil, ""
	}
	entries, err := os.ReadDir(pool)
	if err != nil || len(entries) == 0 {
		return nil, ""
	}
	streams, ok := filesOf(o)
	switch {
	case !ok:
		return nil, "a VM of its own: its standard streams are not files"
	case len(s.Volumes) > 0:
		return nil, "a VM of its own: one of the pool has no volumes"
	}
	sh, err := newShape(ctx, s)
	if err != nil {
		return nil, "a VM of its own: " + err.Error()
	}
	ord := order{Dir: d, Spec: *s, Start: start, Registry: o.Registry, Pull: o.Pull, Verify: o.Verify}
	files := []*os.File{lock}
	for i, f := range streams {
		if f != nil {
			ord.Streams[i] = true
			files = append(files, f)
		}
	}
	why = fmt.Sprintf("a VM of its own: the pool has none ready of %d CPUs and %d MiB", sh.spec.CPUs, sh.spec.MemoryMiB)
	for _, i := range rand.Perm(len(entries)) {
		name := entries[i].Name()
		if !strings.HasPrefix(name, sh.name+"-") || !strings.HasSuffix(name, keeperSocket) {
			continue
		}
		path := filepath.Join(pool, name)
		taken, err := handOver(path, ord, files)
		if err == nil {
			return taken, ""
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			os.Remove(path) // of a keeper that was killed
		}
	}
	return nil, why
}

// filesOf returns o's standard streams, if they can be handed over.
func filesOf(o RunOptions) (files [3]*os.File, ok bool) {
	for i, stream := range []any{o.Stdin, o.Stdout, o.Stderr} {
		if stream == nil {
			continue
		}
		if files[i], ok = stream.(*os.File); !ok {
			return files, false
		}
	}
	return files, true
}

// handed is a sandbox that a keeper has taken.
type handed struct {
	conn    *net.UnixConn
	sayings *json.Decoder
}

// handOver gives the order to the keeper at path. After an error nobody has taken it.
func handOver(path string, o order, files []*os.File) (_ *handed, err error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		// The number stays that of the file, which the caller has open, and Fd would make the file block.
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return nil, err
		}
	}
	if _, _, err := conn.WriteMsgUnix([]byte{'\n'}, syscall.UnixRights(fds...), nil); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		return nil, err
	}
	h := &handed{conn: conn, sayings: json.NewDecoder(conn)}
	conn.SetReadDeadline(time.Now().Add(handoverPatience))
	defer conn.SetReadDeadline(time.Time{})
	var s saying
	if err := h.sayings.Decode(&s); err != nil {
		return nil, err
	}
	if !s.Taken {
		return nil, errors.New("a keeper that does not take what it is given")
	}
	// Only now: had this process given up waiting, the sandbox would be in two places.
	if err := json.NewEncoder(conn).Encode(wish{Begin: true}); err != nil {
		return nil, err
	}
	return h, nil
}

// errKeeperGone is why a sandbox in a VM of the pool ends when who keeps the VM does.
var errKeeperGone = errors.New("the process that kept the sandbox's VM has ended: it was killed, or has run out of memory")

// await passes on what o has for the command and returns how the sandbox has ended. When ctx ends, so does the sandbox.
func (t *handed) await(ctx context.Context, o RunOptions) (*ending, error) {
	ended := make(chan struct{})
	var passing sync.WaitGroup
	defer passing.Wait()
	defer close(ended)
	passing.Go(func() {
		to := newSayer(t.conn)
		done := ctx.Done()
		for {
			select {
			case s := <-o.Signals:
				if number, ok := s.(syscall.Signal); ok {
					to.say(wish{Signal: int(number)})
				}
			case size := <-o.Resize:
				to.say(wish{Resize: &size})
			case <-done:
				t.conn.CloseWrite() // the keeper ends the sandbox, and tells
				done = nil
			case <-ended:
				return
			}
		}
	})
	for {
		var s saying
		if err := t.sayings.Decode(&s); err != nil {
			return nil, errKeeperGone
		}
		switch {
		case s.Started && o.Started != nil:
			o.Started()
		case s.Ended != nil:
			return s.Ended, ctx.Err()
		}
	}
}
