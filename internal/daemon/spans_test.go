package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// While somebody traces, each chunk that is read is told of, with what it took; and nothing otherwise.
func TestSpans(t *testing.T) {
	h := newHost(t, registry.Options{})
	ref := h.image("app:1", testimage.EStargz, noise(100_000))
	body, _, err := h.client.Raw(t.Context(), "GET", "/v1/trace", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if err := h.client.Call(t.Context(), "GET", "/v1/trace", nil, nil); !errors.Is(err, &api.Error{Code: api.CodeInUse}) {
		t.Errorf("a second tracer: %v", err)
	}
	h.wantCat(ref, "/f", "", noise(100_000))
	if err := h.client.Call(t.Context(), "DELETE", "/v1/trace", nil, nil); err != nil {
		t.Fatal(err)
	}
	var chunks, blobs, queued int
	for dec := json.NewDecoder(body); ; {
		var s api.Span
		if err := dec.Decode(&s); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if s.Start == 0 || s.End < s.Start || s.Class == "" {
			t.Errorf("span %+v", s)
		}
		switch {
		case s.Kind == api.SpanBlob:
			blobs++
		case s.Kind == api.SpanQueue:
			queued++
			if s.Layer == "" || s.Size == 0 {
				t.Errorf("range %+v", s)
			}
		case s.File != 0: // else it was read ahead
			chunks++
			if s.Path == "" || s.Layer == "" || s.Chunk == "" || s.Asked < s.Start {
				t.Errorf("chunk %+v", s)
			}
		}
	}
	if chunks == 0 || blobs == 0 || queued == 0 {
		t.Errorf("%d chunks, %d reads of blobs, %d ranges", chunks, blobs, queued)
	}
	// A tracer that goes away without a word ends its trace too.
	ctx, cancel := context.WithCancel(t.Context())
	if body, _, err = h.client.Raw(ctx, "GET", "/v1/trace", nil); err != nil {
		t.Fatal(err)
	}
	cancel()
	body.Close()
	for h.daemon.images.spans.on.Load() && t.Context().Err() == nil {
		time.Sleep(time.Millisecond)
	}
	h.wantCat(ref, "/f", "", noise(100_000))
	if left := h.daemon.images.spans.take(); len(left) > 0 {
		t.Errorf("recorded without a tracer: %+v", left)
	}
}
