package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
)

// memBlob is a blob in memory that counts what is read and can misbehave.
type memBlob struct {
	data []byte
	// cut, when it is not 0, breaks every stream after so many bytes.
	cut int
	// gate, when it is not nil, lets a stream pass byte n only when it has been told so.
	gate *gate

	mu    sync.Mutex
	opens int
	reads int
	bytes int64
}

func (b *memBlob) Size() int64 { return int64(len(b.data)) }

func (b *memBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	b.mu.Lock()
	b.reads++
	b.bytes += int64(len(p))
	b.mu.Unlock()
	return bytes.NewReader(b.data).ReadAt(p, off)
}

func (b *memBlob) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	b.mu.Lock()
	b.opens++
	b.mu.Unlock()
	if off > b.Size() {
		return nil, fmt.Errorf("open at %d of %d", off, b.Size())
	}
	return &memStream{ctx: ctx, b: b, pos: int(off), begin: int(off)}, nil
}

type memStream struct {
	ctx        context.Context
	b          *memBlob
	pos, begin int
}

func (s *memStream) Close() error { return nil }

func (s *memStream) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, s.ctx.Err()
	}
	rest := s.b.data[s.pos:]
	if s.b.cut > 0 {
		if left := s.begin + s.b.cut - s.pos; left <= 0 && len(rest) > 0 {
			return 0, errors.New("connection reset")
		} else {
			rest = rest[:min(len(rest), left)]
		}
	}
	if len(rest) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(rest), 10_000)
	if s.b.gate != nil {
		var err error
		if n, err = s.b.gate.pass(s.ctx, s.pos, n); err != nil {
			return 0, err
		}
	}
	copy(p[:n], rest)
	s.pos += n
	s.b.mu.Lock()
	s.b.bytes += int64(n)
	s.b.mu.Unlock()
	return n, nil
}

// gate holds a stream back at a byte.
type gate struct {
	mu      sync.Mutex
	limit   int
	changed chan struct{}
}

func newGate(limit int) *gate { return &gate{limit: limit, changed: make(chan struct{})} }

func (g *gate) open(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = limit
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) pass(ctx context.Context, pos, n int) (int, error) {
	for {
		g.mu.Lock()
		limit, changed := g.limit, g.changed
		g.mu.Unlock()
		if pos < limit {
			return min(n, limit-pos), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// memStore is a Store in memory.
type memStore struct {
	mu   sync.Mutex
	m    map[Digest][]byte
	fail error // of Put
	puts int
}

func newStore() *memStore { return &memStore{m: make(map[Digest][]byte)} }

func (s *memStore) Put(ctx context.Context, key [32]byte, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if sha256.Sum256(data) != key {
		return errors.New("put: not its digest")
	}
	s.puts++
	s.m[key] = bytes.Clone(data)
	return nil
}

func (s *memStore) Has(key [32]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key] != nil
}

func (s *memStore) Delete(key [32]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, key)
	return nil
}

func (s *memStore) get(key Digest) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key]
}
