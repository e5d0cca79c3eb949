package remote

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// maxRefusals is how often an answer that trying again should not change is believed to be one bad server of several.
const maxRefusals = 3

// persist calls turn until it succeeds, fails for good, or no byte has arrived for as long as the stall deadline says.
// turn says how long the host wants to be left alone after a failure.
func (c *Client) persist(ctx context.Context, u *upstream, count *counter, arrived func() int64, turn func() (time.Duration, error)) error {
	progress := c.now()
	u.waits.begin(progress)
	defer u.waits.end()
	refusals := 0
	for try := 1; ; try++ {
		before := arrived()
		wait, err := turn()
		if err == nil {
			return nil
		}
		now := c.now()
		if arrived() > before {
			progress, try, refusals = now, 1, 0
		}
		var status *statusError
		var protocol *protocolError
		switch {
		case ctx.Err() != nil || errors.Is(err, errNoRange) || !transient(err):
			return err
		case errors.As(err, &protocol), errors.As(err, &status) && status.code < 500 && status.retryAfter == 0:
			if refusals++; refusals >= maxRefusals {
				return err
			}
		}
		wait = max(wait, backoff(try))
		if c.stall > 0 {
			left := c.stall - now.Sub(progress)
			if left <= 0 {
				return firstError(errDeadline, err, nil)
			}
			wait = min(wait, left)
		}
		if err := c.sleep(ctx, wait); err != nil {
			return err
		}
		count.addRetry()
	}
}

// backoff is the pause after attempt n (from 1): exponential, at most 5 s, with half of it random so that clients that
// failed together do not come back together.
func backoff(n int) time.Duration {
	d := min(100*time.Millisecond<<min(n-1, 10), 5*time.Second)
	return d/2 + rand.N(d/2)
}

func sleepContext(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
