package chunkcache

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
)

// entry says where one chunk is. Entries live in memory only for chunks that are in use; the index has them all.
type entry struct {
	seg  *segment // immutable
	off  int64    // immutable: of the chunk's first byte in the segment's file
	size int64    // immutable: bytes
	// suspect: written before an unclean stop, so that only the chunk's sha256 says whether it is right. Immutable: an
	// entry found right is replaced by one that is not suspect.
	suspect bool

	checking sync.Mutex    // held while blocks are being checked, so that several readers do not all do it
	checked  atomic.Uint64 // bit i: block i is known to be right
	used     atomic.Uint32 // the minute of last use
	saved    atomic.Uint32 // the minute of last use that the index knows
	pending  atomic.Int32  // writes of this entry that the index has not seen: it must stay in memory
	dead     atomic.Bool   // deleted: what is read from its place may be anything. Set before the place is freed
}

// A chunk is checked in blocks, at most 64, so that the first small read of a large chunk need not read all of it.
const (
	blockSize = 64 << 10
	maxBlocks = 64
	allBlocks = ^uint64(0)
)

// blockLen is the length of a chunk's blocks, bytes: all but the last are as long.
func blockLen(size int64) int64 {
	if size <= blockSize*maxBlocks {
		return blockSize
	}
	n := (size + maxBlocks - 1) / maxBlocks
	return (n + pageSize - 1) &^ (pageSize - 1)
}

// blockCount is how many blocks a chunk has.
func blockCount(size int64) int {
	n := blockLen(size)
	return int((size + n - 1) / n)
}

// blockMask has the bits of the blocks that bytes [off, off+n) of a chunk touch. n > 0.
func blockMask(size, off, n int64) uint64 {
	l := blockLen(size)
	first, last := off/l, (off+n-1)/l
	return allBlocks << first & (allBlocks >> (63 - last))
}

// blockSums are the CRC-32Cs of a chunk's blocks.
func blockSums(data []byte) []uint32 {
	l := blockLen(int64(len(data)))
	sums := make([]uint32, 0, blockCount(int64(len(data))))
	for len(data) > 0 {
		n := min(int64(len(data)), l)
		sums = append(sums, checksum(data[:n]))
		data = data[n:]
	}
	return sums
}

// record is what the index holds of a chunk, in this order, little-endian: version 1, epoch, segment, offset, size and
// minute of last use as 32-bit numbers, then the blocks' checksums; none for a chunk that was found by a rebuild and is
// checked against its sha256.
type record struct {
	epoch, seg, off, size, used uint32
	sums                        []uint32
}

const recordVersion, recordHead = 1, 21

var errRecord = errors.New("index entry is damaged")

func (r record) encode() []byte {
	b := make([]byte, 0, recordHead+4*len(r.sums))
	b = append(b, recordVersion)
	for _, n := range [...]uint32{r.epoch, r.seg, r.off, r.size, r.used} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	for _, n := range r.sums {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

func decodeRecord(b []byte) (record, error) {
	r, err := decodePlace(b)
	if err != nil {
		return record{}, err
	}
	for rest := b[recordHead:]; len(rest) > 0; rest = rest[4:] {
		r.sums = append(r.sums, binary.LittleEndian.Uint32(rest))
	}
	return r, nil
}

// decodePlace is decodeRecord without the sums, for who reads many.
func decodePlace(b []byte) (record, error) {
	if len(b) < recordHead || b[0] != recordVersion {
		return record{}, errRecord
	}
	n := func(i int) uint32 { return binary.LittleEndian.Uint32(b[1+4*i:]) }
	r := record{epoch: n(0), seg: n(1), off: n(2), size: n(3), used: n(4)}
	rest := len(b) - recordHead
	if r.size == 0 || r.size > MaxSize || rest != 0 && rest != 4*blockCount(int64(r.size)) {
		return record{}, errRecord
	}
	return r, nil
}
