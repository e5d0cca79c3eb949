package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// watch cancels one attempt when nothing has come of it for a while.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

// errSilent is the cause of an attempt's end for silence.
var errSilent = errors.New("no byte came")

func newWatch(ctx context.Context, limit time.Duration) *watch {
	w := &watch{limit: limit}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(limit, func() { w.cancel(errSilent) })
	return w
}

// progress starts the wait anew.
func (w *watch) progress() { w.timer.Reset(w.limit) }

// pause stops the wait until the next progress: it is we who do not read.
func (w *watch) pause() { w.timer.Stop() }

// abandon cancels the attempt.
func (w *watch) abandon() { w.cancel(context.Canceled) }

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// explain turns the cancellation that the watch caused into what it was for.
func (w *watch) explain(err error) error {
	if errors.Is(context.Cause(w.ctx), errSilent) {
		return fmt.Errorf("%w for %v", errSilent, w.limit)
	}
	return err
}

// readAll reads all of body, at most limit bytes.
func (w *watch) readAll(body io.Reader, limit int64) ([]byte, error) {
	var data []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			w.progress()
			data = append(data, buf[:n]...)
		}
		switch {
		case int64(len(data)) > limit:
			return data, fmt.Errorf("%w: the document is longer than %d bytes", ErrUnsupported, limit)
		case err == io.EOF:
			return data, nil
		case err != nil:
			return data, err
		}
	}
}
