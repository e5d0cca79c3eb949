package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// trace starts everything that is measured on a host mount again, in turns with eBPF watching and without, as often as there are runs. What
// is seen goes to a directory of its own for each case, the last run's stays; the times of both are samples: what watching costs.
func (p *plan) trace(ctx context.Context) error {
	tasks, err := p.tasks(ctx)
	if err != nil {
		return err
	}
	for run := 1; run <= p.runs; run++ {
		for _, k := range tasks {
			if k.system.key != "mount" {
				continue
			}
			for _, traced := range []bool{run%2 == 0, run%2 == 1} {
				if err := p.traceOne(ctx, k, run, traced); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (p *plan) traceOne(ctx context.Context, k task, run int, traced bool) error {
	c := k.cell()
	v := Sample{Set: "trace", Case: strings.Join([]string{c.Image, c.Form, c.Link}, ", "), System: "not traced", Base: !traced, Run: run, Unit: "s"}
	if traced {
		dir, err := filepath.Abs(filepath.Join(p.results.dir, "traces", strings.Join([]string{c.Image, c.Form, c.Link}, "-")))
		if err != nil {
			return err
		}
		k.trace, v.System = dir, "traced"
	}
	r, err := k.measure(ctx)
	if err != nil {
		return fmt.Errorf("trace %s: %w", v.Case, err)
	}
	v.Value = r.Ready
	fmt.Fprintf(p.said, "%-40s %-10s %7.2f s\n", v.Case, v.System, v.Value)
	return p.results.addSample(v)
}
