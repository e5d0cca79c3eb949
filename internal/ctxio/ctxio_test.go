package ctxio

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// What was read before the context ended is there; after that nothing is.
func TestReader(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	r := Reader(ctx, strings.NewReader("abcdef"))
	var three [3]byte
	if _, err := io.ReadFull(r, three[:]); err != nil || string(three[:]) != "abc" {
		t.Fatalf("%q, %v", three, err)
	}
	cancel(errors.New("enough"))
	if n, err := r.Read(three[:]); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
}
