// Package layer turns one layer of an image, a blob in a registry, into its entries (files, directories, whiteouts) and
// its chunks (runs of file bytes named by their sha256), each as early as it can be known.
//
// A layer with a TOC that its manifest vouches for (eStargz, zstd:chunked), or with an index left behind by an earlier
// pass, is lazy: all entries are known at once and chunks are read from anywhere in the blob. Any other layer is
// streamed once, in order: entries and chunks can be used as soon as they have passed, and what is learned on the way becomes the
// layer's index. A streamed layer's bytes are provisional until its end, where the blob's digest and the diffID are checked.
//
// Locks: Layer.mu is the only one that is held while another function of the package runs, and no I/O happens under it.
package layer

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Store keeps chunks. It is safe for concurrent use.
type Store interface {
	// Put stores data under key, its sha256. It is idempotent. data is the caller's again when Put returns.
	Put(ctx context.Context, key [32]byte, data []byte) error
	// Has says whether key is stored.
	Has(key [32]byte) bool
	// Delete forgets key; one that is not there is no error.
	Delete(key [32]byte) error
}

// Options are how a layer is opened. The zero value works: nothing is kept.
type Options struct {
	// Dir is where index files are kept. "" keeps none.
	Dir string
	// Chunks takes the chunks that pass by. nil drops them: Fetch then reads them from the blob again.
	Chunks Store
	// Buffers bounds the chunks that wait to be stored while the layer streams, bytes; 0 means 12 MiB, and one chunk is always
	// let through.
	Buffers int64
	// TOC is where the TOC of an eStargz is thought to begin in its blob, bytes; 0 when nobody knows. It need not be right.
	TOC int64
	// Tail is how much of the end of an eStargz is worth reading at once where its TOC's place is not known, bytes: as much as passes
	// while another request would be waited for. 0 means 2 MiB.
	Tail int64

	markEvery time.Duration // between two marks of a stream, for tests; 0 means markEvery
	openTime  time.Duration // for tests; 0 means openTime
}

// Mode says how a layer is read.
type Mode string

const (
	LazyTOC   Mode = "lazy-toc"   // by the TOC in its blob
	LazyIndex Mode = "lazy-index" // by an index made earlier
	Streaming Mode = "streaming"  // once, in order, because there is neither
	Full      Mode = "full"       // no longer: all chunks are stored
)

// Layer is an open layer. It is safe for concurrent use.
type Layer struct {
	d     Descriptor
	blob  Blob
	o     Options
	id    Digest         // of the blob
	size  int64          // of the blob
	owned sync.WaitGroup // the stream and flights
	done  chan struct{}
	have  *atomic.Int64
	spans windows

	mu      sync.RWMutex
	t       *table                  // guarded by mu; as is what it holds
	file    *indexFile              // guarded by mu; the mapping behind t, nil when t is in memory
	ready   []bool                  // guarded by mu; which chunks are stored, while streaming
	sealed  bool                    // guarded by mu; t is complete
	err     error                   // guarded by mu; what everything answers
	trouble error                   // guarded by mu; why the stream has got nothing for a while, nil when it gets on
	mode    Mode                    // guarded by mu
	reason  string                  // guarded by mu
	entered signal                  // guarded by mu; when there are new entries, or the layer has ended
	stored  signal                  // guarded by mu; when another chunk is ready, or the layer has ended
	flights []*flight               // guarded by mu
	closed  bool                    // guarded by mu
	stop    context.CancelCauseFunc // guarded by mu; ends the stream

	small []byte // guarded by mu; a small blob, as it was read; nil when it was not, or is not trusted

	hasty bool // a stream in trouble ends; immutable

	lazily    Mode           // guarded by mu; the mode if a hint that says Full should be wrong, "" when there was none
	untrusted bool           // guarded by mu; t was imported and is not verified yet
	known     map[int]Digest // guarded by mu; digests of chunks that t does not know, by number
	verifying *verification  // guarded by mu; nil when none is under way
}

// Open opens the layer d, whose bytes are b. It returns as soon as entries can be asked for: with an index file in
// o.Dir without any I/O on b, with a TOC after reading it, else at once, and the layer streams from then on until its end or
// Close. ctx bounds Open itself and gives the stream its values (its priority), not its life.
func Open(ctx context.Context, d Descriptor, b Blob, o Options) (*Layer, error) {
	id, err := parseDigest(d.Digest)
	if err != nil {
		return nil, fmt.Errorf("open layer %q: %w", d.Digest, err)
	}
	l := &Layer{d: d, blob: b, o: o, id: id, size: b.Size(), done: make(chan struct{}), have: new(atomic.Int64), stop: func(error) {}}
	if d.Size > 0 && d.Size != l.size {
		return nil, fmt.Errorf("open layer %s: %w", d.Digest, corrupt("the manifest says %d bytes, the registry has %d", d.Size, l.size))
	}
	toc, why := tocOf(&d)
	if toc != nil {
		if l.openIndex(indexName(id, toc.digest), toc.digest) {
			return l, l.settle(LazyTOC, "TOC vouched for by the manifest, kept from an earlier pass")
		}
	}
	if l.openIndex(indexName(id, Digest{}), Digest{}) {
		return l, l.settle(LazyIndex, "index made by an earlier pass")
	}
	if toc != nil {
		end := &tail{b: b}
		t, err := readTOC(ctx, &d, end, toc, &o)
		switch {
		case err == nil:
			l.t = t
			if l.size <= smallBlob {
				l.small = end.mem
			}
			l.owned.Go(func() { l.keepIndex(toc.digest) }) // nobody waits for the disk
			return l, l.settle(LazyTOC, "TOC vouched for by the manifest")
		case !errors.Is(err, errNoTOC):
			return nil, fmt.Errorf("open layer %s: %w", d.Digest, err)
		}
		why = err.Error()
	}
	if l.openIndex(pulledName(id), Digest{}) {
		l.untrusted = true
		return l, l.settle(LazyIndex, "index pulled from elsewhere, not verified before the layer is complete")
	}
	l.mode, l.reason = Streaming, why
	l.t = &table{blob: l.size, end: l.size}
	from := l.takeUp()
	if from != nil {
		l.reason += fmt.Sprintf("; taken up at byte %d", from.Off)
	}
	sctx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	l.stop = stop
	l.owned.Go(func() { l.runStream(sctx, from) })
	return l, nil
}

// settle makes a layer whose table is complete usable.
func (l *Layer) settle(m Mode, reason string) error {
	l.mode, l.reason, l.sealed = m, reason, true
	if !l.untrusted {
		close(l.done)
		if l.o.Dir != "" {
			os.Remove(filepath.Join(l.o.Dir, partialName(l.id))) // of a stream that was not needed, or killed at its very end
		}
	}
	if l.o.Chunks != nil {
		l.recall()
		l.owned.Go(l.survey)
	}
	return nil
}

// Digest is the blob's digest as the manifest has it.
func (l *Layer) Digest() string { return l.d.Digest }

// Mode says how the layer is read, and why so.
func (l *Layer) Mode() (m Mode, reason string) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mode, l.reason
}

// maxBatch is how many entries Entries returns at most.
const maxBatch = 4096

// Entries returns entries from number from on, in layer order, some but not necessarily all that there are. It blocks
// until there is at least one or the layer has ended; done says that nothing follows what is returned. The number of an entry is the
// same whether it was streamed or comes from an index.
func (l *Layer) Entries(ctx context.Context, from int) (es []Entry, done bool, err error) {
	if from < 0 {
		return nil, false, fmt.Errorf("entries of layer %s: number %d", l.d.Digest, from)
	}
	err = l.wait(ctx, &l.entered, false, func() bool {
		n := len(l.t.entries)
		if from >= n && !l.sealed {
			return false
		}
		to := min(from+maxBatch, n)
		if from < to {
			es = l.t.appendEntries(make([]Entry, 0, to-from), from, to)
		}
		done = l.sealed && to >= n
		return true
	})
	return es, done, err
}

// Chunk returns the chunk that holds byte off of an entry. While the layer streams it waits until that chunk has been
// stored, or for as long as the stream gets on. Asking for what is not a regular file's byte is an error.
func (l *Layer) Chunk(ctx context.Context, entry int, off int64) (c Chunk, err error) {
	var absent bool
	err = l.wait(ctx, &l.stored, true, func() bool {
		if !l.sealed && entry >= len(l.t.entries) {
			return false
		}
		if entry < 0 || entry >= len(l.t.entries) || off < 0 || off >= l.t.entries[entry].size {
			absent = true
			return true
		}
		n := l.t.find(entry, off)
		if n == none {
			absent = l.sealed
			return l.sealed
		}
		if !l.sealed && !l.ready[n] {
			return false
		}
		c = l.t.chunk(n)
		if c.Digest == (Digest{}) {
			c.Digest = l.known[int(n)]
		}
		return true
	})
	if err == nil && c.Size > 0 && c.Digest == (Digest{}) {
		c.Digest, err = l.learn(ctx, c.Index)
	}
	if err == nil && absent {
		err = fmt.Errorf("layer %s: entry %d has no byte %d", l.d.Digest, entry, off)
	}
	return c, err
}

// signal wakes those who wait for something. The zero value is ready; Layer.mu guards it.
type signal struct {
	c chan struct{} // nil when nobody waits
}

// wait is closed by the next wake.
func (s *signal) wait() <-chan struct{} {
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

func (s *signal) wake() {
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}

// wait calls ready with mu read-locked until it is true, again whenever sig wakes. Unless the caller can wait for ever, it
// does so no longer than the stream gets on.
func (l *Layer) wait(ctx context.Context, sig *signal, hasty bool, ready func() bool) error {
	for {
		l.mu.RLock()
		err := l.err
		ok := err == nil && ready()
		if !ok && err == nil && hasty {
			err = l.trouble
		}
		l.mu.RUnlock()
		if ok || err != nil {
			return err
		}
		// Only now, and seldom, the exclusive lock: to leave a channel that sig closes.
		l.mu.Lock()
		if l.err != nil || ready() || hasty && l.trouble != nil {
			l.mu.Unlock()
			continue
		}
		changed := sig.wait()
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// look calls fn with mu read-locked, unless the layer has failed.
func (l *Layer) look(fn func()) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.err == nil {
		fn()
	}
	return l.err
}

// wake wakes everybody. mu is held.
func (l *Layer) wake() {
	l.entered.wake()
	l.stored.wake()
}

// Done is closed when the index is complete and verified, or when the layer has failed: then Err says why.
func (l *Layer) Done() <-chan struct{} { return l.done }

// Err is why the layer fails, nil as long as it does not. After a digest mismatch it is an ErrCorrupt.
func (l *Layer) Err() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.err
}

// Trouble says why the stream has got nothing for a while; nil when it gets on, or need not. It is tried on and on, so that
// trouble may pass.
func (l *Layer) Trouble() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.trouble
}

// setTrouble notes that a stream gets nothing, or with nil that it does again.
func (l *Layer) setTrouble(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trouble = err
	l.stored.wake()
}

// TOC is where the layer's TOC begins in its blob: what Options.TOC of a later Open may say. It is 0 where there is none.
func (l *Layer) TOC() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.err != nil || !l.sealed || !l.t.form.parts() {
		return 0
	}
	return l.t.toc()
}

// Progress returns how many of the blob's bytes have been brought here by this Layer, and its size.
func (l *Layer) Progress() (have, total int64) { return min(l.have.Load(), l.size), l.size }

// Close ends the stream and all fetches and waits for them. What waits on the layer gets ErrClosed.
func (l *Layer) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.stop(ErrClosed)
	l.closed = true
	l.fail(ErrClosed)
	for _, f := range l.flights {
		f.stop(ErrClosed)
	}
	l.mu.Unlock()
	l.owned.Wait()
	l.spans.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t = &table{}
	if l.file != nil {
		return l.file.close()
	}
	return nil
}

// fail makes everything answer err, unless it already answers another. mu is held.
func (l *Layer) fail(err error) {
	if l.err == nil {
		l.err = err
	}
	l.wake()
}

// parseDigest reads "sha256:<64 hex digits>".
func parseDigest(s string) (d Digest, err error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*len(d) || strings.ToLower(h) != h {
		return d, corrupt("digest %q is not sha256:<64 hex digits>", short(s))
	}
	if _, err := hex.Decode(d[:], []byte(h)); err != nil {
		return d, corrupt("digest %q is not sha256:<64 hex digits>", short(s))
	}
	return d, nil
}

// String is the digest as manifests spell it.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }
