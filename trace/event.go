package trace

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Kind is what an Event tells.
type Kind uint16

// Kinds of Events, as bpf/trace.bpf.c numbers them.
const (
	Send  Kind = iota + 1 // a FUSE request was sent: A its unique number, B its node, C the offset and D the size of a READ
	End                   // and answered: A its unique number, D the error, negative
	Get                   // a read has its pages: A inode, B first and C last page
	Fault                 // a page fault wants a page: A inode, B page
	Add                   // pages came into the cache: A inode, B first page, C how many
	Map                   // pages around a fault were mapped, those of them that are cached: A inode, B first and C last page
	Sleep                 // somebody has slept since A; B is the node and C the request, or 0, that it asked for last
)

// Event is something that the kernel has seen happen on a traced mount.
type Event struct {
	TS   uint64 `json:"ts"` // CLOCK_MONOTONIC, ns
	A    uint64 `json:"a"`
	B    uint64 `json:"b"`
	C    uint64 `json:"c"`
	D    int32  `json:"d"`
	Dev  uint32 `json:"dev"` // of the mount, as the kernel numbers it
	TID  uint32 `json:"tid"` // of the thread
	PID  uint32 `json:"pid"` // of the process
	Kind Kind   `json:"kind"`
	Op   uint16 `json:"op"` // FUSE opcode, of Send and End
	Comm string `json:"comm"`
}

// maxPages is more than one event can have.
const maxPages = 4096

// pages is how many pages e is about.
func (e *Event) pages() uint64 {
	switch e.Kind {
	case Get, Map:
		return min(e.C-e.B, maxPages-1) + 1
	case Fault:
		return 1
	case Add:
		return min(e.C, maxPages)
	default:
		return 0
	}
}

// record is an event as the kernel writes it.
type record struct {
	TS, A, B, C   uint64
	D             int32
	Dev, TID, PID uint32
	Kind, Op      uint16
	Comm          [16]byte
	_             uint32
}

func parse(raw []byte) (Event, error) {
	var r record
	if len(raw) < binary.Size(r) {
		return Event{}, fmt.Errorf("an event of %d bytes", len(raw))
	}
	if _, err := binary.Decode(raw, binary.NativeEndian, &r); err != nil {
		return Event{}, err
	}
	comm, _, _ := bytes.Cut(r.Comm[:], []byte{0})
	return Event{TS: r.TS, A: r.A, B: r.B, C: r.C, D: r.D, Dev: r.Dev, TID: r.TID, PID: r.PID, Kind: Kind(r.Kind), Op: r.Op, Comm: string(comm)}, nil
}
