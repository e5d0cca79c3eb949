package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/microsandbox/msb-fs/internal/priority"
)

// spool is a blob of a registry without Range support: streamed once, in order, into an unlinked file that serves reads
// as it grows. Its bytes are checked against the blob's digest at the end.
type spool struct {
	blob   *Blob
	class  priority.Class
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex // guards what follows
	file   *os.File   // nil once closed
	have   int64
	over   bool
	err    error         // why it is over; nil when the blob is complete
	change chan struct{} // closed and replaced when have or over changes
	hash   digest.Digester
}

// adopt goes on with an answer that turned out to be the whole blob, and its watch, as the blob's spool. Unless ok, the
// answer remains the caller's: there is a spool already, or with err none can be made.
func (b *Blob) adopt(resp *http.Response, watch *watch, class priority.Class) (ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spool != nil {
		return false, nil
	}
	want := digest.Digest(b.digest)
	if err := want.Validate(); err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	file, err := os.CreateTemp(b.client.options.TempDir, "msb-fs-blob-*")
	if err == nil {
		if err = os.Remove(file.Name()); err != nil {
			file.Close()
		}
	}
	if err != nil {
		return false, fmt.Errorf("%w: %s has no Range support, and there is no place to spool its blob: %w", ErrUnsupported, resp.Request.URL.Host, err)
	}
	s := &spool{blob: b, class: class, file: file, change: make(chan struct{}), hash: want.Algorithm().Digester()}
	s.ctx, s.cancel = context.WithCancel(b.client.ctx)
	if !b.client.start(func() { s.run(resp, watch) }) {
		s.end(ErrClosed)
		return false, ErrClosed
	}
	b.spool = s
	return true, nil
}

// run streams until the blob is complete, beginning with an answer that is there already. A blob that is not what its
// digest names is streamed once more, from elsewhere if there is an elsewhere.
func (s *spool) run(resp *http.Response, watch *watch) {
	sched := s.blob.scheduler()
	// Only so much of it is on its way at a time; the range whose answer it began with gives up its own place now.
	t := sched.enter(s.class, min(rangeSize, s.blob.size))
	defer sched.leave(t)
	watch.pause()
	select {
	case <-t.ready:
	case <-s.ctx.Done():
	}
	watch.progress()
	err := s.stream(resp, watch)
	if err == nil {
		if err = s.verify(); err != nil {
			s.blob.up.distrust()
			s.restart()
			if err = s.stream(nil, nil); err == nil {
				err = s.verify()
			}
		}
	}
	if s.ctx.Err() != nil && err != nil {
		err = ErrClosed
	}
	if err != nil {
		// The next read starts afresh.
		s.blob.mu.Lock()
		if s.blob.spool == s {
			s.blob.spool = nil
		}
		s.blob.mu.Unlock()
	}
	s.mu.Lock()
	s.end(err)
	s.mu.Unlock()
}

// verify compares all bytes with the blob's digest.
func (s *spool) verify() error {
	if got := s.hash.Digest(); got.String() != s.blob.digest {
		return fmt.Errorf("%w: want %s, got %s", ErrDigest, s.blob.digest, got)
	}
	return nil
}

// restart forgets all bytes. Readers of what is not there wait for it again.
func (s *spool) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have = 0
	s.hash.Hash().Reset()
}

// stream brings the blob here, beginning with an answer if there is one.
func (s *spool) stream(resp *http.Response, watch *watch) error {
	c := s.blob.client
	return c.persist(s.ctx, s.blob.up, &s.blob.count, s.arrived, func() (wait time.Duration, err error) {
		if resp != nil {
			err = s.take(resp, watch, 0)
			resp = nil
			return 0, err
		}
		for _, source := range s.blob.up.order() {
			if wait = source.host.breaker.pass(c.now()); wait > 0 {
				err = errResting
				continue
			}
			err = s.ask(source)
			if s.ctx.Err() != nil {
				return 0, s.ctx.Err()
			}
			s.blob.up.report(source, err)
			if err == nil {
				return 0, nil
			}
			var status *statusError
			if errors.As(err, &status) {
				wait = status.retryAfter
			}
		}
		return wait, err
	})
}

// ask goes on with the blob from a source: by Range if there is such support after all, else from the start again.
func (s *spool) ask(source *source) error {
	c := s.blob.client
	watch := newWatch(s.ctx, c.attemptTimeout())
	defer watch.stop()
	have := s.arrived()
	resp, err := s.blob.request(watch.ctx, source, have, s.blob.size-have, s.class)
	if err != nil {
		return watch.explain(err)
	}
	if resp.StatusCode == http.StatusOK {
		return s.take(resp, watch, 0)
	}
	if n, err := checkRange(resp, have, s.blob.size-have, s.blob.size); err != nil || n != s.blob.size-have {
		resp.Body.Close()
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	return s.take(resp, watch, have)
}

// take writes a body that begins at offset at of the blob, skipping what is there already.
func (s *spool) take(resp *http.Response, watch *watch, at int64) error {
	defer watch.stop()
	defer resp.Body.Close()
	host, size := resp.Request.URL.Host, s.blob.size
	if at == 0 {
		if _, err := checkRange(resp, 0, size, size); err != nil {
			return err
		}
	}
	buf := make([]byte, 128<<10)
	for at < size {
		n, err := resp.Body.Read(buf[:min(int64(len(buf)), size-at)])
		if n > 0 {
			watch.progress()
			s.blob.up.waits.progress(s.blob.client.now())
			s.blob.count.addBytes(s.class, n)
			if err := s.write(buf[:n], at); err != nil {
				return err
			}
			at += int64(n)
		}
		if err != nil && at < size {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return watch.explain(fmt.Errorf("%s: %w", host, err))
		}
	}
	return nil
}

// write adds what is new of p, the blob's bytes from offset at on.
func (s *spool) write(p []byte, at int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return ErrClosed
	}
	if skip := s.have - at; skip > 0 {
		p = p[min(skip, int64(len(p))):]
	}
	if len(p) == 0 {
		return nil
	}
	if _, err := s.file.WriteAt(p, s.have); err != nil {
		return fmt.Errorf("%w: spool the blob: %w", ErrUnsupported, err)
	}
	s.hash.Hash().Write(p)
	s.have += int64(len(p))
	close(s.change)
	s.change = make(chan struct{})
	return nil
}

// read fills some of p from offset off, waiting until the stream has come that far.
func (s *spool) read(ctx context.Context, p []byte, off int64) (int, error) {
	for {
		s.mu.Lock()
		switch {
		case s.file != nil && s.have > off:
			defer s.mu.Unlock()
			return s.file.ReadAt(p[:min(int64(len(p)), s.have-off)], off)
		case s.over && s.err != nil:
			defer s.mu.Unlock()
			return 0, s.err
		case s.over:
			defer s.mu.Unlock()
			return 0, errStale
		}
		change := s.change
		s.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

func (s *spool) arrived() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have
}

// complete says whether the whole blob is there and is what its digest names.
func (s *spool) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over && s.err == nil
}

// end wakes all readers. A spool that failed keeps no bytes: they may be wrong. The caller holds s.mu, unless nobody else
// knows s yet.
func (s *spool) end(err error) {
	s.err, s.over = err, true
	if err != nil && s.file != nil {
		s.file.Close()
		s.file = nil
	}
	close(s.change)
	s.change = make(chan struct{})
	s.cancel()
}

// close frees the file and stops the stream.
func (s *spool) close() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
	if s.over {
		return
	}
	s.end(ErrClosed)
}
