package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
)

func tableCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "table DIR",
		Short: "Print a directory of results as Markdown",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := readResults(args[0])
			if err != nil {
				return err
			}
			return writeTable(cmd.OutOrStdout(), s)
		},
	}
}

// writeTable writes every cell: medians with their spread.
func writeTable(w io.Writer, s *set) error {
	cells, groups := byCell(s.records)
	p := printer{w: w}
	p.line("| link | image | form | system | ready, s: median (min to max) | p95 | of the limit | MB | requests | complete, s | CPU, s | RSS, MB | runs |")
	p.line("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, c := range cells {
		rs := groups[c]
		ready := summarize(column(rs, func(r Record) float64 { return r.Ready }))
		mid := func(f func(Record) float64) float64 { return summarize(column(rs, f)).Median }
		ratio, complete := "", ""
		if l := s.limit(c.Image, c.Link); l > 0 {
			ratio = fmt.Sprintf("%.1f x", ready.Median/l)
		}
		if done := slices.DeleteFunc(column(rs, func(r Record) float64 { return r.Complete }), func(v float64) bool { return v == 0 }); len(done) > 0 {
			complete = fmt.Sprintf("%.1f", summarize(done).Median)
		}
		p.line("| %s | %s | %s | %s | **%.2f** (%.2f to %.2f) | %.2f | %s | %.1f of %.1f | %.0f | %s | %.1f | %.0f | %d |",
			linkName(c.Link), c.Image, c.Form, systemName(c.System), ready.Median, ready.Min, ready.Max, ready.P95, ratio,
			mid(func(r Record) float64 { return float64(r.Bytes) / 1e6 }), float64(rs[0].ImageBytes)/1e6,
			mid(func(r Record) float64 { return float64(r.Requests) }), complete,
			mid(func(r Record) float64 { return r.CPU }), mid(func(r Record) float64 { return float64(r.RSSTotal) / (1 << 20) }), ready.N)
	}
	return p.err
}

// printer writes lines until one fails.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func linkName(key string) string {
	for _, l := range links() {
		if l.key == key {
			return l.name
		}
	}
	return key
}

func systemName(key string) string {
	for _, s := range systems() {
		if s.key == key {
			return s.name
		}
	}
	return key
}
