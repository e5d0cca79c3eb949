package chunkcache

import (
	"encoding/binary"
	"hash/crc32"
)

// A record is a chunk in a segment file: a header and the chunk's bytes right behind it. Records begin at multiples of 8,
// not always where the one before ends. All numbers are little-endian.
//
//	 0  8  magic
//	 8 32  key: the sha256 of the chunk, which is also its checksum
//	40  4  size of the chunk, bytes
//	44 16  zero
//	60  4  CRC-32C of the 60 bytes before
//
// A header whose checksum is right but whose chunk is not (it was forged inside another chunk, or power was lost) does
// no harm: nothing is believed before its sha256 has been compared.
const (
	recordMagic = "msbchnk1"
	headerSize  = 64
	recordAlign = 8
	pageSize    = 4096
	// Chunks from here on begin at its multiples, so that the kernel reads them in large folios; the gap is a hole in
	// the file and takes no disk.
	alignedChunk = 64 << 10
)

// header describes one record.
type header struct {
	key  Key
	size uint32
}

// place is where the record of a chunk of size bytes begins when everything below tail is taken.
func place(tail int64, size int) int64 {
	if size < alignedChunk {
		return tail
	}
	return (tail+headerSize+alignedChunk-1)&^(alignedChunk-1) - headerSize
}

// recordLength is what a chunk of size bytes takes on disk, bytes.
func recordLength(size int64) int64 {
	return (headerSize + size + recordAlign - 1) &^ (recordAlign - 1)
}

func (h header) encode(b []byte) {
	clear(b[:headerSize])
	copy(b, recordMagic)
	copy(b[8:], h.key[:])
	binary.LittleEndian.PutUint32(b[40:], h.size)
	binary.LittleEndian.PutUint32(b[60:], checksum(b[:60]))
}

// decodeHeader says whether b begins with a header, and which.
func decodeHeader(b []byte) (h header, ok bool) {
	if len(b) < headerSize || string(b[:8]) != recordMagic ||
		binary.LittleEndian.Uint32(b[60:]) != checksum(b[:60]) {
		return header{}, false
	}
	copy(h.key[:], b[8:])
	h.size = binary.LittleEndian.Uint32(b[40:])
	return h, h.size > 0 && h.size <= MaxSize
}

// checksum is CRC-32C, which the processor computes at the speed of memory. MakeTable caches this polynomial.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
