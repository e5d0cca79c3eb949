package remote

import "github.com/microsandbox/msb-fs/internal/priority"

// sequence is how far reads have gone on one after another.
type sequence struct {
	next int64 // where the next read would go on
	run  int64 // bytes read in a row
}

var _ = priority.OnDemand
