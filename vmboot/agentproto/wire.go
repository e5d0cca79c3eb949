package agentproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Message is what a frame contains: a pointer to one of this package's structs. Its fields are listed once, for both
// directions.
type Message interface{ fields(w *wire) }

// wire is a message on its way. Numbers are varints (encoding/binary, signed); strings are a length and bytes; lists a count and
// elements; a message within a message is the length of it, so that fields can be added to its end, and its fields.
// JSON would do as well, but an emulated guest takes a tenth of a second longer to run it.
type wire struct {
	b       []byte // what has been written, or is still to be read
	reading bool
	err     error
}

var errCut = errors.New("a message that ends within a field")

// WriteFrame writes m as one frame.
func WriteFrame(to io.Writer, m Message) error {
	w := wire{b: make([]byte, 4, 256)}
	m.fields(&w)
	binary.BigEndian.PutUint32(w.b, uint32(len(w.b)-4))
	_, err := to.Write(w.b)
	return err
}

// ReadFrame reads one frame of at most limit bytes into m, which is zero. It returns io.EOF only where no byte of a frame was
// there.
func ReadFrame(r io.Reader, limit uint32, m Message) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > limit {
		return fmt.Errorf("frame of %d bytes, at most %d are allowed", n, limit)
	}
	// The buffer grows with what arrives, not with what the length promises.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if uint32(len(body)) != n {
		return io.ErrUnexpectedEOF
	}
	w := wire{b: body, reading: true}
	m.fields(&w)
	return w.err
}

// number passes one number. What a peer that knows fewer fields has left out is 0.
func number[T ~int | ~int64 | ~uint16 | ~uint32 | ~uint64](w *wire, v *T) {
	if !w.reading {
		w.b = binary.AppendVarint(w.b, int64(*v))
		return
	}
	if len(w.b) == 0 || w.err != nil {
		return
	}
	x, n := binary.Varint(w.b)
	if n <= 0 {
		w.fail(errCut)
		return
	}
	w.b = w.b[n:]
	if *v = T(x); int64(*v) != x {
		w.fail(fmt.Errorf("the number %d where none can be so large", x))
	}
}

func (w *wire) fail(err error) { w.err, w.b = err, nil }

func (w *wire) flag(v *bool) {
	n := 0
	if *v {
		n = 1
	}
	number(w, &n)
	*v = n != 0
}

// length passes how many bytes or elements follow; each element has one byte at least.
func (w *wire) length(n int) int {
	number(w, &n)
	if w.reading && (n < 0 || n > len(w.b)) {
		w.fail(errCut)
		return 0
	}
	return n
}

func (w *wire) text(s *string) {
	n := w.length(len(*s))
	if !w.reading {
		w.b = append(w.b, *s...)
		return
	}
	*s = string(w.b[:n])
	w.b = w.b[n:]
}

func (w *wire) texts(list *[]string) {
	each(w, list, w.text)
}

// each passes a list by one.
func each[T any](w *wire, list *[]T, one func(*T)) {
	n := w.length(len(*list))
	for i := range n {
		if w.reading {
			if w.err != nil {
				return
			}
			*list = append(*list, *new(T)) // grows with what is there, not with what is promised
		}
		one(&(*list)[i])
	}
}

// within passes a message within a message.
func (w *wire) within(m Message) {
	inner := wire{reading: w.reading}
	if !w.reading {
		m.fields(&inner)
	}
	n := w.length(len(inner.b))
	if !w.reading {
		w.b = append(w.b, inner.b...)
		return
	}
	inner.b, w.b = w.b[:n], w.b[n:]
	if m.fields(&inner); inner.err != nil {
		w.fail(inner.err)
	}
}

// optional passes what may be nil.
func optional[T any](w *wire, v **T, pass func(*T)) {
	given := *v != nil
	if w.flag(&given); !given {
		return
	}
	if *v == nil {
		*v = new(T)
	}
	pass(*v)
}

func (m *Hello) fields(w *wire) {
	w.text(&m.Magic)
	number(w, &m.Version)
	w.text(&m.Kernel)
}

func (m *Setup) fields(w *wire) {
	number(w, &m.Version)
	number(w, &m.Time)
	w.text(&m.Hostname)
	w.texts(&m.Hosts)
	optional(w, &m.Network, func(n *Network) { w.within(n) })
	each(w, &m.Mounts, func(mount *Mount) { w.within(mount) })
}

func (m *Network) fields(w *wire) {
	w.text(&m.Interface)
	w.text(&m.Address)
	w.text(&m.Gateway)
	w.texts(&m.DNS)
	number(w, &m.MTU)
}

func (m *Mount) fields(w *wire) {
	w.text(&m.Type)
	w.text(&m.Source)
	w.text(&m.Target)
	w.text(&m.File)
	w.text(&m.Options)
	w.flag(&m.ReadOnly)
}

func (m *Request) fields(w *wire) {
	optional(w, &m.Start, func(p *Process) { w.within(p) })
	number(w, &m.Signal)
	optional(w, &m.Resize, func(s *Size) { w.within(s) })
}

func (m *Process) fields(w *wire) {
	w.texts(&m.Args)
	w.texts(&m.Env)
	w.text(&m.Dir)
	w.flag(&m.MakeDir)
	w.texts(&m.Dirs)
	w.text(&m.User)
	w.texts(&m.Groups)
	optional(w, &m.Umask, func(u *uint32) { number(w, u) })
	each(w, &m.Rlimits, func(r *Rlimit) { w.within(r) })
	w.flag(&m.TTY)
	w.within(&m.Size)
	w.flag(&m.Stdin)
}

func (m *Size) fields(w *wire) {
	number(w, &m.Rows)
	number(w, &m.Cols)
}

func (m *Rlimit) fields(w *wire) {
	number(w, &m.Resource)
	number(w, &m.Soft)
	number(w, &m.Hard)
}

func (m *Reply) fields(w *wire) {
	number(w, &m.Started)
	optional(w, &m.Exit, func(e *Exit) { w.within(e) })
}

func (m *Exit) fields(w *wire) {
	number(w, &m.Code)
	number(w, &m.Signal)
	w.text(&m.Error)
}

func (m *Shutdown) fields(w *wire) { number(w, &m.GraceMS) }
