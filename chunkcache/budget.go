package chunkcache

import (
	"context"

	"github.com/microsandbox/msb-fs/internal/priority"
	"golang.org/x/sync/semaphore"
)

// budget bounds the bytes of chunks in memory. What nobody waits for has a quarter of its own, so that a read that
// somebody waits for never waits for a prefetch's buffers.
type budget struct {
	urgent, patient   *semaphore.Weighted
	urgents, patients int64 // their sizes, bytes
}

// grant is what was acquired from a budget, bytes. The zero value is nothing.
type grant struct{ urgent, patient int64 }

func newBudget(total int64) *budget {
	patients := max(1, total/4)
	urgents := max(1, total-patients)
	return &budget{semaphore.NewWeighted(urgents), semaphore.NewWeighted(patients), urgents, patients}
}

// acquire waits for room for n bytes; more than there can be counts as all there is.
func (b *budget) acquire(ctx context.Context, class priority.Class, n int64) (grant, error) {
	if class == priority.OnDemand {
		n = min(n, b.urgents)
		return grant{urgent: n}, b.urgent.Acquire(ctx, n)
	}
	n = min(n, b.patients)
	return grant{patient: n}, b.patient.Acquire(ctx, n)
}

func (b *budget) release(g grant) {
	b.urgent.Release(g.urgent)
	b.patient.Release(g.patient)
}
