package layer

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/testimage"
)

// moodyBlob is a blob whose registry goes away after some bytes of a stream and comes back.
type moodyBlob struct {
	*memBlob
	left atomic.Int64 // bytes until it goes away
}

var errAway = errors.New("the registry is away")

func (b *moodyBlob) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	r, err := b.memBlob.Open(ctx, off)
	return &moodyStream{r, b}, err
}

type moodyStream struct {
	io.ReadCloser
	b *moodyBlob
}

func (s *moodyStream) Read(p []byte) (int, error) {
	left := s.b.left.Load()
	if left <= 0 {
		return 0, errAway
	}
	n, err := s.ReadCloser.Read(p[:min(int64(len(p)), left)])
	s.b.left.Add(int64(-n))
	return n, err
}

// A stream that gets nothing tells those who wait, tries on, and goes on when there is something again.
func TestStreamInTrouble(t *testing.T) {
	l, err := testimage.NewLayer(testimage.Tar, testimage.File("a", string(make([]byte, 100))), testimage.File("b", string(make([]byte, 1<<20))))
	if err != nil {
		t.Fatal(err)
	}
	rc, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	b := &moodyBlob{memBlob: &memBlob{data: data}}
	b.left.Store(4096)
	ctx := context.Background()
	s, err := Open(ctx, Descriptor{Digest: digest.String(), Size: int64(len(data)), MediaType: "application/vnd.oci.image.layer.v1.tar"}, b, Options{openTime: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for from, seen := 0, 0; seen < 2; from = seen { // entries are waited for, whatever happens
		es, _, err := s.Entries(ctx, from)
		if err != nil {
			t.Fatal(err)
		}
		seen = from + len(es)
	}
	if _, err := s.Chunk(ctx, 1, 1<<19); !errors.Is(err, errAway) {
		t.Errorf("chunk that cannot come: %v", err)
	}
	if err := s.Complete(ctx); !errors.Is(err, errAway) {
		t.Errorf("complete: %v", err)
	}
	if err := s.Trouble(); !errors.Is(err, errAway) || s.Err() != nil {
		t.Errorf("trouble %v, error %v", err, s.Err())
	}
	b.left.Store(1 << 30)
	<-s.Done()
	if err := errors.Join(s.Err(), s.Trouble()); err != nil {
		t.Errorf("at the end: %v", err)
	}
	if _, err := s.Chunk(ctx, 1, 1<<19); err != nil {
		t.Error(err)
	}
}
