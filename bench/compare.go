package main

import (
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// pair is who is compared with whom in a set of samples.
type pair struct{ set, ours, base string }

// add keeps the runs of one case, in seconds; caches says what was in them, and comes last in the case's name.
func (p pair) add(r *results, what, caches string, ours, base []float64) error {
	for i := range ours {
		for _, v := range []Sample{{System: p.ours, Value: ours[i]}, {System: p.base, Value: base[i], Base: true}} {
			v.Set, v.Case, v.Run, v.Unit = p.set, what+", "+caches, i+1, "s"
			if err := r.addSample(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// table writes what the results have of p: medians with their spread, the ratio of each case, and the geometric mean of
// those that had the same in their caches.
func (p pair) table(r *results, out io.Writer) error {
	samples, err := readLines[Sample](filepath.Join(r.dir, samplesFile))
	if err != nil {
		return err
	}
	s := &set{samples: samples}
	order, all := s.cases(p.set)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "case\truns\t%s, s\t%s, s\tratio\n", p.ours, p.base)
	var caches []string
	logs := map[string][]float64{}
	for _, c := range order {
		if len(all[c][p.ours]) == 0 || len(all[c][p.base]) == 0 {
			continue
		}
		a, b := summarize(values(all[c][p.ours])), summarize(values(all[c][p.base]))
		fmt.Fprintf(table, "%s\t%d\t%.3f (%.3f-%.3f)\t%.3f (%.3f-%.3f)\t%.2f\n", c.name, a.N, a.Median, a.Min, a.Max, b.Median, b.Min, b.Max, a.Median/b.Median)
		which := c.name[strings.LastIndex(c.name, ", ")+2:]
		if logs[which] == nil {
			caches = append(caches, which)
		}
		logs[which] = append(logs[which], math.Log(a.Median/b.Median))
	}
	for _, which := range caches {
		sum := 0.0
		for _, v := range logs[which] {
			sum += v
		}
		fmt.Fprintf(table, "geometric mean, %s\t\t\t\t%.2f\n", which, math.Exp(sum/float64(len(logs[which]))))
	}
	return table.Flush()
}
