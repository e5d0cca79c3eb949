package daemon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/remote"
)

const (
	// partialBlock is how many bytes of a partial blob have one checksum: the most that a kill makes fetched twice, beside what was
	// on its way.
	partialBlock = 256 << 10
	// partialAge is how long a blob that nobody goes on with is kept.
	partialAge = 7 * 24 * time.Hour
	// partialReserve is the part of the disk that partial blobs leave free: one in so many.
	partialReserve = 20
)

// partials are blobs that are being pulled whole, kept on disk as far as they have come: their bytes are needed twice, in order to
// be held against the blob's digest, and by chunks, and a daemon which is killed goes on where it was. A blob's bytes are in <hex>.part; <hex>.crc has a CRC-32C of each block, written after the
// block, so that what a crash of the machine left undone is noticed. Whether they are the right bytes is found out by
// the layer, at its end, like that of any stream. It is safe for concurrent use.
type partials struct {
	dir string

	mu   sync.Mutex
	open map[string]*partial // by digest
}

// cleanUp removes what nobody has gone on with for long. Nothing is open yet.
func (ps *partials) cleanUp(now time.Time) error {
	digests, err := cached(ps.dir, nil)
	for _, digest := range digests {
		fi, serr := os.Stat(ps.path(digest) + ".part")
		if serr != nil || now.Sub(fi.ModTime()) > partialAge {
			err = errors.Join(err, ps.remove(digest))
		}
	}
	return err
}

// partial is the prefix of one blob.
type partial struct {
	path string // without .part and .crc; immutable
	size int64  // of the blob; immutable

	refs int // guarded by partials.mu

	mu      sync.RWMutex
	data    *os.File      // guarded by mu; nil when nothing is kept
	sums    *os.File      // guarded by mu; with data
	have    int64         // guarded by mu; bytes in data
	crc     uint32        // guarded by mu; of the last, unfinished block
	streams int           // guarded by mu; that read on from have
	grown   chan struct{} // guarded by mu; closed when have or streams has changed
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// get returns what is kept of a blob; the caller releases it.
func (ps *partials) get(digest string, size int64) *partial {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.open[digest]
	if p == nil {
		p = &partial{path: ps.path(digest), size: size, grown: make(chan struct{})}
		p.load()
		if ps.open == nil {
			ps.open = map[string]*partial{}
		}
		ps.open[digest] = p
	}
	p.refs++
	return p
}

func (ps *partials) path(digest string) string {
	return filepath.Join(ps.dir, strings.TrimPrefix(digest, "sha256:"))
}

// release ends what get began. What is kept stays for the next daemon.
func (ps *partials) release(digest string, p *partial) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.refs--; p.refs == 0 {
		delete(ps.open, digest)
		p.close()
	}
}

// remove deletes what is kept of a blob that nobody reads.
func (ps *partials) remove(digest string) error {
	path := ps.path(digest)
	for _, name := range []string{path + ".crc", path + ".part"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove partial layer: %w", err)
		}
	}
	return nil
}

// load opens the files and believes as much of them as the checksums vouch for. Where there is no room for the blob,
// nothing is kept. p is not shared yet.
func (p *partial) load() {
	data, err := os.OpenFile(p.path+".part", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	sums, err := os.OpenFile(p.path+".crc", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		data.Close()
		return
	}
	p.data, p.sums = data, sums
	p.have = sound(data, sums, p.size)
	blocks := (p.have + partialBlock - 1) / partialBlock
	if data.Truncate(p.have) != nil || sums.Truncate(4*blocks) != nil || !roomFor(data, p.size-p.have) {
		p.drop()
	}
}

// sound is how many bytes of data, from its start, are as sums says.
func sound(data, sums *os.File, size int64) (n int64) {
	block := make([]byte, partialBlock)
	for {
		var sum [4]byte
		want := min(partialBlock, size-n)
		if want <= 0 {
			return n
		}
		if _, err := sums.ReadAt(sum[:], n/partialBlock*4); err != nil {
			return n
		}
		if _, err := data.ReadAt(block[:want], n); err != nil {
			return n
		}
		if crc32.Checksum(block[:want], castagnoli) != binary.LittleEndian.Uint32(sum[:]) {
			return n
		}
		n += want
	}
}

// roomFor says whether n more bytes leave enough of f's disk free.
func roomFor(f *os.File, n int64) bool {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &st); err != nil {
		return false
	}
	return int64(st.Bavail)*st.Bsize-n > int64(st.Blocks)*st.Bsize/partialReserve
}

// read copies bytes from offset off that are kept; 0 when there are none.
func (p *partial) read(b []byte, off int64) int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.data == nil || off >= p.have {
		return 0
	}
	n, _ := p.data.ReadAt(b[:min(int64(len(b)), p.have-off)], off)
	return n
}

// append keeps b, the blob's bytes from offset off on, if that is where it goes on.
func (p *partial) append(b []byte, off int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil || off != p.have || off+int64(len(b)) > p.size {
		return
	}
	for len(b) > 0 {
		n := min(int64(len(b)), partialBlock-p.have%partialBlock)
		if _, err := p.data.WriteAt(b[:n], p.have); err != nil {
			p.drop() // the disk is full: the stream goes on without
			return
		}
		p.crc = crc32.Update(p.crc, castagnoli, b[:n])
		p.have += n
		b = b[n:]
		if p.have%partialBlock != 0 && p.have != p.size {
			continue
		}
		var sum [4]byte
		binary.LittleEndian.PutUint32(sum[:], p.crc)
		if _, err := p.sums.WriteAt(sum[:], (p.have-1)/partialBlock*4); err != nil {
			p.drop()
			return
		}
		p.crc = 0
	}
	p.wake()
}

// wake wakes those who wait for more. The caller holds mu.
func (p *partial) wake() {
	close(p.grown)
	p.grown = make(chan struct{})
}

// distrust drops everything if that goes beyond offset off.
func (p *partial) distrust(off int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if off < p.have {
		p.drop()
	}
}

// drop forgets and deletes everything. The caller holds mu.
func (p *partial) drop() {
	if p.data == nil {
		return
	}
	p.data.Close()
	p.sums.Close()
	p.data, p.sums, p.have, p.crc = nil, nil, 0, 0
	os.Remove(p.path + ".crc")
	os.Remove(p.path + ".part")
	p.wake()
}

// close leaves what is kept to the next daemon.
func (p *partial) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data != nil {
		p.data.Close()
		p.sums.Close()
		p.data, p.sums, p.have, p.crc = nil, nil, 0, 0
	}
}

// stream notes that somebody begins (1) or ends (-1) to read on from where p ends.
func (p *partial) stream(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams += n
	p.wake()
}

// await waits until all before end is kept, or that is not going to happen. Only what nobody needs now has the time.
func (p *partial) await(ctx context.Context, end int64) {
	for priority.From(ctx) == priority.Background {
		p.mu.RLock()
		wait, grown := p.have < end && p.streams > 0 && p.data != nil, p.grown
		p.mu.RUnlock()
		if !wait {
			return
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return
		}
	}
}

// keptBlob is a blob of which, once keep has been called, what is read in order is kept on disk, and comes from there.
type keptBlob struct {
	*remote.Blob
	partials *partials
	kept     atomic.Pointer[partial] // nil before keep
}

// keep begins to keep the blob, and takes up what an earlier daemon has kept of it.
func (k *keptBlob) keep() *partial {
	p := k.partials.get(k.Digest(), k.Size())
	if k.kept.CompareAndSwap(nil, p) {
		return p
	}
	k.partials.release(k.Digest(), p)
	return k.kept.Load()
}

// lead begins to keep the blob, which is about to be read inOrder, until done is called. Others wait for that meanwhile.
func (k *keptBlob) lead() (done func()) {
	p := k.keep()
	p.stream(1)
	return func() { p.stream(-1) }
}

// Open reads the blob in order from offset off on.
func (k *keptBlob) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	p := k.kept.Load()
	if p == nil || off < 0 || off > k.Size() {
		return k.Blob.Open(ctx, off)
	}
	return &keptStream{ctx: ctx, blob: k.Blob, partial: p, at: off}, nil
}

// inOrder is k for the one who reads it from its start to its end, so that it is kept.
type inOrder struct{ *keptBlob }

// Open reads the blob in order from offset off on.
func (o inOrder) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	r, err := o.keptBlob.Open(ctx, off)
	if s, ok := r.(*keptStream); ok {
		s.leads = true
	}
	return r, err
}

// ReadAt reads what is kept from disk. What a stream is about to bring is waited for, unless somebody needs it now.
func (k *keptBlob) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	if p := k.kept.Load(); p != nil && off >= 0 {
		p.await(ctx, off+int64(len(b)))
		if p.read(b, off) == len(b) {
			return len(b), nil
		}
	}
	return k.Blob.ReadAt(ctx, b, off)
}

// Distrust says that bytes of the blob are wrong. If they are kept, nothing that is kept counts any more.
func (k *keptBlob) Distrust(off, n int64) {
	if p := k.kept.Load(); p != nil {
		p.distrust(off)
	}
	k.Blob.Distrust(off, n)
}

// discard deletes what is kept: it is wrong, or all of it is in the cache.
func (k *keptBlob) discard() {
	if p := k.kept.Load(); p != nil {
		p.distrust(-1)
	}
}

// Close lets go of the blob.
func (k *keptBlob) Close() error {
	if p := k.kept.Swap(nil); p != nil {
		k.partials.release(k.Digest(), p)
	}
	return k.Blob.Close()
}

// keptStream is one reading of a keptBlob.
type keptStream struct {
	ctx     context.Context
	blob    *remote.Blob
	partial *partial
	at      int64
	leads   bool          // it is what others wait for
	rest    io.ReadCloser // from the registry; nil while what is kept suffices
	closed  bool
}

func (s *keptStream) Read(b []byte) (int, error) {
	p := s.partial
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	if s.rest == nil {
		if !s.leads {
			p.await(s.ctx, s.at+1)
		}
		if n := p.read(b, s.at); n > 0 {
			s.at += int64(n)
			return n, nil
		}
		rest, err := s.blob.Open(s.ctx, s.at)
		if err != nil {
			return 0, err
		}
		s.rest = rest
	}
	n, err := s.rest.Read(b)
	p.append(b[:n], s.at)
	s.at += int64(n)
	return n, err
}

func (s *keptStream) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if s.rest != nil {
		return s.rest.Close()
	}
	return nil
}
