package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

//go:embed report.html
var reportPage string

// reportFile is the report in a directory of results.
const reportFile = "report.html"

func reportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "report DIR",
		Short: "Draw a directory of results as one HTML file",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := readResults(args[0])
			if err != nil {
				return err
			}
			path, err := s.writeReport()
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), path)
			}
			return err
		},
	}
}

// writeReport writes the report beside the results. It needs nothing else: styles and pictures are in it.
func (s *set) writeReport() (string, error) {
	page, err := template.New("report").Parse(reportPage)
	if err != nil {
		return "", fmt.Errorf("write report: %w", err)
	}
	var out bytes.Buffer
	if err := page.Execute(&out, s.report()); err != nil {
		return "", fmt.Errorf("write report: %w", err)
	}
	path := filepath.Join(s.dir, reportFile)
	return path, os.WriteFile(path, out.Bytes(), 0o644)
}

// report is what the page shows.
type report struct {
	Host, Span string
	Machines   []Machine
	Versions   []string
	Runs       string
	Sections   []section
	Facts      []Facts
	Losses     []loss
	Failures   []Failure
	Table      template.HTML
}

// section is a heading with pictures.
type section struct {
	Title, Text string
	Legend      []phase
	Plots       []plot
}

// plot is a picture with its title.
type plot struct {
	Title string
	SVG   template.HTML
}

func (s *set) report() report {
	r := report{Machines: s.machines, Failures: s.failures, Losses: s.losses(), Versions: s.versions()}
	if n := len(s.machines); n > 0 {
		r.Host = s.machines[n-1].Host
		r.Span = s.machines[0].Time.Format("2006-01-02 15:04") + " to " + s.last().Format("15:04 MST")
	}
	for _, w := range workloads() {
		if f, ok := s.facts[w.name]; ok {
			r.Facts = append(r.Facts, f)
		}
	}
	for name, f := range s.facts {
		if !slices.ContainsFunc(workloads(), func(w workload) bool { return w.name == name }) {
			r.Facts = append(r.Facts, f)
		}
	}
	r.Runs = s.runs()
	if len(s.records) > 0 {
		r.Sections = append(r.Sections, s.readySection(), s.bytesSection(), s.timelineSection(), s.costSection())
	}
	r.Sections = append(r.Sections, s.sampleSections()...)
	r.Table = s.htmlTable()
	return r
}

// runs says how many runs the cells have.
func (s *set) runs() string {
	_, groups := byCell(s.records)
	least, most := 0, 0
	for _, rs := range groups {
		if least == 0 || len(rs) < least {
			least = len(rs)
		}
		most = max(most, len(rs))
	}
	if least == most {
		return fmt.Sprint(least)
	}
	return fmt.Sprintf("%d to %d", least, most)
}

// color is a system's in every picture; forms of one system differ in shade.
func color(system, form string) string {
	hue := map[string]int{"mount": 212, "vm": 265, "containerd": 28, "podman": 45, "umoci": 12, "stargz": 150, "soci": 175, "nydus": 90}
	light := map[string]int{"estargz": 45, "gzip+index": 55, "zstd-chunked": 50, "gzip": 68, "zstd": 72, "gzip+soci": 45}
	h, ok := hue[system]
	if !ok {
		return "#888"
	}
	l, ok := light[form]
	if !ok {
		l = 50
	}
	return fmt.Sprintf("hsl(%d,65%%,%d%%)", h, l)
}

// groupsOf makes a group of bars of each image on a link.
func (s *set) groupsOf(link string, value func(Record) float64, mark func(image string) float64) []barGroup {
	cells, groups := byCell(s.records)
	var out []barGroup
	for _, c := range cells {
		if c.Link != link {
			continue
		}
		if len(out) == 0 || out[len(out)-1].name != c.Image {
			out = append(out, barGroup{name: c.Image, mark: mark(c.Image)})
		}
		v := summarize(column(groups[c], value))
		b := bar{
			label: systemName(c.System) + ", " + c.Form, color: color(c.System, c.Form), value: v.Median,
			note: fmt.Sprintf(", from %.3f to %.3f, p95 %.3f, %d runs", v.Min, v.Max, v.P95, v.N),
		}
		if v.N > 1 {
			b.low, b.high = v.Min, v.Max
		}
		g := &out[len(out)-1]
		g.bars = append(g.bars, b)
	}
	for i := range out {
		slices.SortStableFunc(out[i].bars, func(a, b bar) int {
			switch {
			case a.value < b.value:
				return -1
			case a.value > b.value:
				return 1
			}
			return 0
		})
	}
	return out
}

// usedLinks are the links that something was measured on.
func (s *set) usedLinks() []link {
	return slices.DeleteFunc(links(), func(l link) bool {
		return !slices.ContainsFunc(s.records, func(r Record) bool { return r.Link == l.key })
	})
}

func (s *set) readySection() section {
	sec := section{
		Title: "Time until ready",
		Text: "From asking for an image of which nothing is here until its program has done its work and says so. The bar is the median, the whisker goes from the " +
			"fastest run to the slowest; the dashed line is the physical limit: what a start reads, compressed, over the bandwidth and three round trips, or the program's own time if that is longer.",
	}
	for _, l := range s.usedLinks() {
		g := s.groupsOf(l.key, func(r Record) float64 { return r.Ready }, func(i string) float64 { return s.limit(i, l.key) })
		sec.Plots = append(sec.Plots, plot{l.name, barChart("time until ready, "+l.name, "s", "limit", g)})
	}
	return sec
}

func (s *set) bytesSection() section {
	sec := section{Title: "Bytes when ready", Text: "What had come over the link when the program was ready, headers included. The dashed line is what a start reads, compressed."}
	for _, l := range s.usedLinks() {
		g := s.groupsOf(l.key, func(r Record) float64 { return float64(r.Bytes) / 1e6 }, func(i string) float64 { return float64(s.facts[i].Touched) / 1e6 })
		sec.Plots = append(sec.Plots, plot{l.name, barChart("bytes when ready, "+l.name, "MB", "touched", g)})
	}
	return sec
}

func (s *set) costSection() section {
	sec := section{Title: "Processor and memory", Text: "Of all processes of a system together (the registry is not among them): processor seconds until ready, and the most memory at one moment. A microVM's guest memory is in it."}
	ls := s.usedLinks()
	l := ls[len(ls)-1]
	if i := slices.IndexFunc(ls, func(l link) bool { return l.key == "1g" }); i >= 0 {
		l = ls[i]
	}
	none := func(string) float64 { return 0 }
	cpu := s.groupsOf(l.key, func(r Record) float64 { return r.CPU }, none)
	rss := s.groupsOf(l.key, func(r Record) float64 { return float64(r.RSSTotal) / 1e6 }, none)
	sec.Plots = []plot{
		{"processor seconds, " + l.name, barChart("processor seconds", "s", "", cpu)},
		{"peak memory, " + l.name, barChart("peak memory", "MB", "", rss)},
	}
	return sec
}

// phases are a start's steps, with the colors that timelines give them.
func phases(r Record) []phase {
	return []phase{
		{"reference resolved", "#9ecae1", r.Resolved},
		{"root mounted or unpacked", "#4292c6", r.Mounted},
		{"guest up", "#9e9ac8", r.VM},
		{"first output", "#fdae6b", r.Output},
		{"ready", "#31a354", r.Ready},
		{"all of it local", "#d9d9d9", r.Complete},
	}
}

// timelineSection shows the run in the middle of each system for one image.
func (s *set) timelineSection() section {
	image, key := s.records[0].Image, s.records[0].Link
	if slices.ContainsFunc(s.records, func(r Record) bool { return r.Image == "python" && r.Link == "100m" }) {
		image, key = "python", "100m"
	}
	sec := section{
		Title: "Where the time goes in one start", Legend: phases(Record{}),
		Text: fmt.Sprintf("The run in the middle of each system with %s over %s. A full pull is complete when it is unpacked; what a lazy system fetches after the program is ready is grey where it was waited for.", image, linkName(key)),
	}
	cells, groups := byCell(s.records)
	var rows []timelineRow
	for _, c := range cells {
		if c.Image != image || c.Link != key {
			continue
		}
		rs := slices.SortedFunc(slices.Values(groups[c]), func(a, b Record) int { return int((a.Ready - b.Ready) * 1e6) })
		rows = append(rows, timelineRow{systemName(c.System) + ", " + c.Form, phases(rs[len(rs)/2])})
	}
	sec.Plots = []plot{{image + ", " + linkName(key), timeline("timeline of one start", rows)}}
	return sec
}

// htmlTable is the table of every cell.
func (s *set) htmlTable() template.HTML {
	var md strings.Builder
	if err := writeTable(&md, s); err != nil {
		return ""
	}
	var out strings.Builder
	for i, line := range strings.Split(strings.TrimSpace(md.String()), "\n") {
		if i == 1 {
			continue
		}
		tag := "td"
		if i == 0 {
			tag = "th"
		}
		out.WriteString("<tr>")
		for _, cell := range strings.Split(strings.Trim(line, "|"), "|") {
			text := template.HTMLEscapeString(strings.ReplaceAll(strings.TrimSpace(cell), "**", ""))
			fmt.Fprintf(&out, "<%s>%s</%s>", tag, text, tag)
		}
		out.WriteString("</tr>\n")
	}
	return template.HTML(out.String()) //nolint:gosec // every cell has been escaped
}
