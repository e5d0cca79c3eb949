// Package ctxio reads files under a context: reading one cannot be interrupted, going on reading can.
package ctxio

import (
	"context"
	"io"
)

// Reader is r until ctx is done; from then on every Read fails with the context's error. A Read that is under way is not
// interrupted, so it is for files, not for what may wait for ever. It is as safe for concurrent use as r.
func Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
