package priority

import (
	"context"
	"testing"
)

// Whoever sets nothing waits for what he reads; the classes are ordered by what goes first.
func TestClasses(t *testing.T) {
	ctx := context.Background()
	if c := From(ctx); c != OnDemand {
		t.Errorf("without a class: %v", c)
	}
	names := map[string]bool{}
	for c := OnDemand; c <= Background; c++ {
		if got := From(With(With(ctx, Background-c), c)); got != c {
			t.Errorf("With(%v) gives %v", c, got)
		}
		names[c.String()] = true
	}
	if len(names) != 3 || !(OnDemand < Predicted && Predicted < Background) {
		t.Errorf("classes %v", names)
	}
}
