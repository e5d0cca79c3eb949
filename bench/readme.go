package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Markers in README.md, around what this writes.
const (
	readmeBegin = "<!-- bench: begin -->"
	readmeEnd   = "<!-- bench: end -->"
)

func readmeCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "readme DIR",
		Short: "Put the short table of a directory of results between the markers of a Markdown file",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := readResults(args[0])
			if err != nil {
				return err
			}
			var table bytes.Buffer
			if err := s.writeShort(&table); err != nil {
				return err
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			text, err := between(string(raw), table.String())
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			return os.WriteFile(file, []byte(text), 0o644)
		},
	}
	cmd.Flags().StringVar(&file, "file", "README.md", "the file to write to")
	return cmd
}

// between puts text between the markers of a page.
func between(page, text string) (string, error) {
	head, rest, ok := strings.Cut(page, readmeBegin)
	_, foot, found := strings.Cut(rest, readmeEnd)
	if !ok || !found {
		return "", errors.New("the markers " + readmeBegin + " and " + readmeEnd + " are not there")
	}
	return head + readmeBegin + "\n" + text + readmeEnd + foot, nil
}

// contestant is a column of the short table.
type contestant struct{ title, system, form string }

func contestants() []contestant {
	return []contestant{
		{"**ours**, eStargz", "mount", "estargz"},
		{"**ours**, gzip with index", "mount", "gzip+index"},
		{"**ours**, gzip never seen", "mount", "gzip"},
		{"stargz-snapshotter, eStargz", "stargz", "estargz"},
		{"SOCI, gzip with index", "soci", "gzip+soci"},
		{"containerd, gzip", "containerd", "gzip"},
		{"podman, gzip", "podman", "gzip"},
		{"umoci, gzip", "umoci", "gzip"},
		{"**ours**, microVM, eStargz", "vm", "estargz"},
	}
}

// writeShort writes a table of medians: a row for each image and link, a column for each contestant; the fastest in bold.
func (s *set) writeShort(w io.Writer) error {
	cells, groups := byCell(s.records)
	ready := map[cell]summary{}
	for _, c := range cells {
		ready[c] = summarize(column(groups[c], func(r Record) float64 { return r.Ready }))
	}
	columns := slices.DeleteFunc(contestants(), func(k contestant) bool {
		return !slices.ContainsFunc(cells, func(c cell) bool { return c.System == k.system && c.Form == k.form })
	})
	p := printer{w: w}
	head, rule := "| seconds until ready | limit |", "|---|---|"
	for _, k := range columns {
		head += " " + k.title + " |"
		rule += "---|"
	}
	for _, l := range s.usedLinks() {
		p.line("")
		p.line("%s:", l.name)
		p.line("")
		p.line("%s", head)
		p.line("%s", rule)
		for _, image := range s.imagesOn(l.key) {
			p.line("%s", s.shortRow(image, l.key, columns, ready))
		}
	}
	p.line("")
	p.line("%s", s.caption())
	return p.err
}

// imagesOn are the images that were measured on a link, with their order.
func (s *set) imagesOn(key string) []string {
	cells, _ := byCell(s.records)
	var names []string
	for _, c := range cells {
		if c.Link == key && !slices.Contains(names, c.Image) {
			names = append(names, c.Image)
		}
	}
	return names
}

func (s *set) shortRow(image, key string, columns []contestant, ready map[cell]summary) string {
	size := ""
	if f, ok := s.facts[image]; ok {
		size = fmt.Sprintf(" (%.0f MB)", float64(f.Bytes)/1e6)
	}
	best := 0.0
	for _, k := range columns {
		if v, ok := ready[cell{image, k.form, key, k.system}]; ok && (best == 0 || v.Median < best) {
			best = v.Median
		}
	}
	limit := ""
	if l := s.limit(image, key); l > 0 {
		limit = fmt.Sprintf("%.2f", l)
	}
	row := fmt.Sprintf("| %s%s | %s |", image, size, limit)
	for _, k := range columns {
		v, ok := ready[cell{image, k.form, key, k.system}]
		switch {
		case !ok:
			row += " |"
		case v.Median == best:
			row += fmt.Sprintf(" **%.2f** |", v.Median)
		default:
			row += fmt.Sprintf(" %.2f |", v.Median)
		}
	}
	return row
}

// caption says what the numbers are of.
func (s *set) caption() string {
	where := ""
	if n := len(s.machines); n > 0 {
		m := s.machines[n-1]
		where = fmt.Sprintf("%d x %s, %s, Linux %s, %s. ", m.CPUs, m.CPU, m.System, m.Kernel, m.KVM)
	}
	runs := "Medians of " + s.runs() + " runs"
	if s.runs() == "1" {
		runs = "One run of each so far, the beginning of a full run"
	}
	return where + fmt.Sprintf("%s, everything wiped before each; limit is what physics allows. Spread, bytes, memory and all cases: [the report](%s/%s).", runs, s.dir, reportFile)
}
