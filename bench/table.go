package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// writeTable writes medians with their spread as Markdown: a row per form and system, of each link.
func writeTable(w io.Writer, all []Result) error {
	type cell struct{ link, form, system string }
	cells := map[cell][]Result{}
	var order []cell
	for _, r := range all {
		c := cell{r.Link, r.Form, r.System}
		if cells[c] == nil {
			order = append(order, c)
		}
		cells[c] = append(cells[c], r)
	}
	slices.SortStableFunc(order, func(a, b cell) int {
		return cmp.Or(cmp.Compare(a.link, b.link), cmp.Compare(a.form, b.form), cmp.Compare(a.system, b.system))
	})
	_, err := fmt.Fprintln(w, "| link | image | system | first output, s: median (min to max) | MB by then, of all | requests | all local, s | runs |\n|---|---|---|---|---|---|---|---|")
	for _, c := range order {
		rs := cells[c]
		s := column(rs, func(r Result) float64 { return r.Seconds })
		complete := "at start"
		if rs[0].Complete > 0 {
			complete = fmt.Sprintf("%.1f", median(column(rs, func(r Result) float64 { return r.Complete })))
		}
		_, e := fmt.Fprintf(w, "| %s | %s, %s | %s | **%.2f** (%.2f to %.2f) | %.1f of %.1f | %.0f | %s | %d |\n",
			c.link, rs[0].Image, c.form, c.system, median(s), slices.Min(s), slices.Max(s),
			median(column(rs, func(r Result) float64 { return float64(r.Bytes) / 1e6 })), float64(rs[0].Size)/1e6,
			median(column(rs, func(r Result) float64 { return float64(r.Reqs) })), complete, len(rs))
		err = cmp.Or(err, e)
	}
	return err
}

func column(rs []Result, f func(Result) float64) []float64 {
	var out []float64
	for _, r := range rs {
		out = append(out, f(r))
	}
	slices.Sort(out)
	return out
}

// median is the middle of sorted numbers.
func median(s []float64) float64 {
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}
