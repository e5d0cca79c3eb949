package chunkcache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// defaultSegment is where a segment ends, bytes: large enough that a terabyte needs few files, small enough to compact.
const defaultSegment = 256 << 20

// A segment's file is named by its number, in hex.
const segmentPrefix, segmentSuffix = "seg-", ".chunks"

// segments are the data files of a cache. Records are only ever appended; space comes back by punching holes.
type segments struct {
	dir  string
	max  int64
	used atomic.Int64 // bytes on disk, an estimate between two calls of measure

	mu     sync.RWMutex
	byID   map[uint32]*segment // guarded by mu
	active *segment            // guarded by mu; where records are appended, nil: none yet
	next   uint32              // guarded by mu; the next segment's id
}

// segment is one data file. Its file is closed when it is removed: reads then fail and are answered as a miss.
type segment struct {
	id      uint32
	f       *os.File
	tail    int64        // guarded by segments.mu; where the next record begins
	writers atomic.Int32 // appends whose chunk is not in the index yet
	dirty   atomic.Bool  // written to since it was opened
	holed   atomic.Bool  // chunks were deleted since it was last tidied
	sealed  atomic.Bool  // the index says that it knows all of its records
}

// openSegments opens all segment files in dir; none is active yet.
func openSegments(dir string, limit int64) (*segments, error) {
	if limit <= 0 {
		limit = defaultSegment
	}
	s := &segments{dir: dir, max: limit, byID: make(map[uint32]*segment), next: 1}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, de := range names {
		id, ok := segmentID(de.Name())
		if !ok {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, de.Name()), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			s.close()
			return nil, err
		}
		fi, err := f.Stat()
		if err != nil || !fi.Mode().IsRegular() {
			f.Close()
			s.close()
			return nil, errors.Join(fmt.Errorf("%s is no data file", de.Name()), err)
		}
		g := &segment{id: id, f: f, tail: (fi.Size() + recordAlign - 1) &^ (recordAlign - 1)}
		s.byID[id] = g
		s.next = max(s.next, id+1)
	}
	s.measure()
	return s, nil
}

// segmentID reads a segment's file name.
func segmentID(name string) (uint32, bool) {
	hex, ok := strings.CutPrefix(name, segmentPrefix)
	if !ok {
		return 0, false
	}
	if hex, ok = strings.CutSuffix(hex, segmentSuffix); !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(hex, 16, 32)
	return uint32(id), err == nil && id > 0 && id < 1<<31
}

func (s *segments) path(id uint32) string {
	return filepath.Join(s.dir, fmt.Sprintf("%s%08x%s", segmentPrefix, id, segmentSuffix))
}

// get returns the segment called id, nil when there is none.
func (s *segments) get(id uint32) *segment {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byID[id]
}

// list returns the segments in order of their ids.
func (s *segments) list() []*segment {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*segment, 0, len(s.byID))
	for _, g := range s.byID {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *segment) int { return int(int64(a.id) - int64(b.id)) })
	return all
}

// append writes data as the chunk k and says where its bytes begin. The segment counts the caller as a writer, who calls
// g.writers.Add(-1) when the index knows the chunk.
func (s *segments) append(k Key, data []byte) (g *segment, off int64, err error) {
	g, at, err := s.reserve(len(data))
	if err != nil {
		return nil, 0, err
	}
	g.dirty.Store(true)
	n := recordLength(int64(len(data)))
	if err := write(g.f, header{key: k, size: uint32(len(data))}, at, data); err != nil {
		s.giveBack(g, at, n)
		g.writers.Add(-1)
		return nil, 0, err
	}
	s.used.Add(n)
	return g, at + headerSize, nil
}

// reserve takes room for a chunk of size bytes at the end of the active segment, or of a new one.
func (s *segments) reserve(size int) (g *segment, at int64, err error) {
	n := recordLength(int64(size))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active == nil || s.active.tail > 0 && place(s.active.tail, size)+n > s.max {
		if err := s.roll(); err != nil {
			return nil, 0, err
		}
	}
	g = s.active
	at = place(g.tail, size)
	g.tail = at + n
	g.writers.Add(1)
	return g, at, nil
}

// roll starts a new active segment. The caller holds mu.
func (s *segments) roll() error {
	f, err := os.OpenFile(s.path(s.next), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	s.active = &segment{id: s.next, f: f}
	s.byID[s.next] = s.active
	s.next++
	return nil
}

// write puts a record at offset at. A large chunk goes first and its header after it; a small one goes in one write.
func write(f *os.File, h header, at int64, data []byte) error {
	if len(data) < alignedChunk {
		b := make([]byte, headerSize+len(data))
		h.encode(b)
		copy(b[headerSize:], data)
		_, err := f.WriteAt(b, at)
		return err
	}
	if _, err := f.WriteAt(data, at+headerSize); err != nil {
		return err
	}
	var b [headerSize]byte
	h.encode(b[:])
	_, err := f.WriteAt(b[:], at)
	return err
}

// giveBack undoes a reservation whose write failed.
func (s *segments) giveBack(g *segment, at, length int64) {
	s.mu.Lock()
	last := g.tail == at+length
	if last { // nobody has reserved behind it, and nobody can while mu is held
		g.tail = at
		_ = g.f.Truncate(at)
	}
	s.mu.Unlock()
	if !last {
		_ = g.punch(at, length)
	}
}

// punch frees the disk blocks of a run of the file; where the file system cannot, the record's header is wiped, so that
// it is not found again. Reads of the run give zeros.
func (g *segment) punch(at, length int64) error {
	conn, err := g.f.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	if err := conn.Control(func(fd uintptr) {
		perr = unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, length)
	}); err != nil {
		return err
	}
	g.dirty.Store(true)
	if errors.Is(perr, unix.EOPNOTSUPP) {
		_, perr = g.f.WriteAt(make([]byte, headerSize), at)
	}
	return perr
}

// resume makes the segment called id, whose records are all whole, the active one again. After an unclean stop there is
// none: a record that was cut short there would overlap the next.
func (s *segments) resume(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.byID[id]; g != nil && g.tail < s.max {
		s.active = g
	}
}

// activeID is the active segment's id, 0 when there is none.
func (s *segments) activeID() uint32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.active == nil {
		return 0
	}
	return s.active.id
}

// free gives the disk space of e's record back. Where that fails it stays taken until the segment is tidied, and so does
// what only a header in the file says to be a record: it may be forged, and lie inside another chunk.
func (s *segments) free(e *entry) {
	n := recordLength(e.size)
	e.seg.holed.Store(true)
	if e.suspect && e.checked.Load() != allBlocks {
		return
	}
	if e.seg.punch(e.off-headerSize, n) == nil {
		s.used.Add(-n)
	}
}

// nextData is where the next byte at or behind at is that is not in a hole; the file's end when there is none.
func (g *segment) nextData(at int64) (int64, error) {
	off, err := g.f.Seek(at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return g.f.Seek(0, io.SeekEnd)
	}
	return off, err
}

// blocks are the bytes of disk the segment takes.
func (g *segment) blocks() int64 {
	fi, err := g.f.Stat()
	if err != nil {
		return 0
	}
	return blocksOf(fi)
}

// measure asks the file system how much disk the segments take, which is what counts: holes are not.
func (s *segments) measure() int64 {
	var n int64
	for _, g := range s.list() {
		n += g.blocks()
	}
	s.used.Store(n)
	return n
}

// sync makes what was written durable.
func (s *segments) sync() error {
	for _, g := range s.list() {
		if g.dirty.Swap(false) {
			if err := g.f.Sync(); err != nil {
				return fmt.Errorf("sync %s: %w", g.f.Name(), err)
			}
		}
	}
	return nil
}

func (s *segments) close() {
	for _, g := range s.list() {
		g.f.Close()
	}
}
