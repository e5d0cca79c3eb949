package layer

import (
	"encoding/binary"
	"errors"
)

// errFlatbuf is what reading beyond a flatbuffer's end leaves behind.
var errFlatbuf = errors.New("flatbuffer is damaged")

// flatbuf reads a FlatBuffers message (https://flatbuffers.dev/internals) that may say anything: what is out of bounds
// reads as absent and leaves err behind.
type flatbuf struct {
	b   []byte
	err error
}

// fbTable is the place of a table, 0 for none.
type fbTable uint32

func (f *flatbuf) bytes(at uint64, n uint64) []byte {
	if at > uint64(len(f.b)) || n > uint64(len(f.b))-at {
		f.err = errFlatbuf
		return make([]byte, min(n, 8))
	}
	return f.b[at : at+n]
}

func (f *flatbuf) u16(at uint64) uint64 { return uint64(binary.LittleEndian.Uint16(f.bytes(at, 2))) }
func (f *flatbuf) u32(at uint64) uint64 { return uint64(binary.LittleEndian.Uint32(f.bytes(at, 4))) }
func (f *flatbuf) i64(at uint64) int64  { return int64(binary.LittleEndian.Uint64(f.bytes(at, 8))) }

// follow is where the offset at at points to.
func (f *flatbuf) follow(at uint64) uint64 { return at + f.u32(at) }

func (f *flatbuf) root() fbTable { return fbTable(f.follow(0)) }

// field is the place of field n of t, 0 when it is absent.
func (f *flatbuf) field(t fbTable, n int) uint64 {
	if t == 0 {
		return 0
	}
	vtable := int64(t) - int64(int32(f.u32(uint64(t))))
	if vtable < 0 {
		f.err = errFlatbuf
		return 0
	}
	slot := uint64(4 + 2*n)
	if slot+2 > f.u16(uint64(vtable)) {
		return 0
	}
	off := f.u16(uint64(vtable) + slot)
	if off == 0 {
		return 0
	}
	return uint64(t) + off
}

func (f *flatbuf) int64(t fbTable, n int) int64 {
	if at := f.field(t, n); at != 0 {
		return f.i64(at)
	}
	return 0
}

func (f *flatbuf) uint32(t fbTable, n int) int64 {
	if at := f.field(t, n); at != 0 {
		return int64(f.u32(at))
	}
	return 0
}

func (f *flatbuf) byte(t fbTable, n int, def byte) byte {
	if at := f.field(t, n); at != 0 {
		return f.bytes(at, 1)[0]
	}
	return def
}

// vector is the place of a vector's elements and how many there are.
func (f *flatbuf) vector(t fbTable, n int, size uint64) (at, count uint64) {
	at = f.field(t, n)
	if at == 0 {
		return 0, 0
	}
	at = f.follow(at)
	count = f.u32(at)
	f.bytes(at+4, count*size)
	if f.err != nil {
		return 0, 0
	}
	return at + 4, count
}

// data is a string or a vector of bytes.
func (f *flatbuf) data(t fbTable, n int) []byte {
	at, count := f.vector(t, n, 1)
	return f.bytes(at, count)
}

func (f *flatbuf) str(t fbTable, n int) string { return string(f.data(t, n)) }

func (f *flatbuf) table(t fbTable, n int) fbTable {
	if at := f.field(t, n); at != 0 {
		return fbTable(f.follow(at))
	}
	return 0
}
