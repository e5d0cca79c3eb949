package trace

import (
	"fmt"
	"html/template"
	"io"
	"slices"
	"time"
)

// maxBars bounds what is drawn; the longest are.
const maxBars = 20_000

// bar is a rectangle of the timeline.
type bar struct {
	X, W  float64
	Y     int
	Color string
	Title string
}

type row struct {
	Y     int
	Label string
}

type legend struct {
	X     int
	Color string
	Name  string
}

type page struct {
	Seconds                  float64
	Width, Height, LabelStop int
	Rows                     []row
	Bars                     []bar
	Ticks                    []tick
	Legend                   []legend
	Report                   *Report
	Files                    []FileStats
}

type tick struct {
	X     float64
	Label string
}

// Geometry of the timeline, pixels.
const (
	rowHeight = 16
	labels    = 220
	plot      = 1180
	topMargin = 40
)

func colors() map[Phase]string {
	return map[Phase]string{Queue: "#9aa0a6", Wire: "#d93025", Inflate: "#f9ab00", Verify: "#1e8e3e", Reply: "#1a73e8", Serve: "#a142f4"}
}

// WriteHTML writes r as one page that needs nothing else: who was blocked when, and on what, coloured by phase, over the requests
// that the kernel sent.
func WriteHTML(w io.Writer, r *Report) error {
	p := &page{Seconds: float64(r.End-r.Start) / 1e9, Width: labels + plot + 20, Report: r, Files: r.Files[:min(50, len(r.Files))]}
	span := float64(max(1, r.End-r.Start))
	x := func(ns int64) float64 { return labels + plot*float64(ns-r.Start)/span }
	y := topMargin
	next := func(label string) int {
		p.Rows = append(p.Rows, row{y + rowHeight - 4, label})
		y += rowHeight
		return y - rowHeight
	}
	side := newDaemonSide(r.Spans)
	for _, proc := range r.Processes {
		byThread := map[uint32]int{}
		for _, wait := range proc.Waits {
			if _, ok := byThread[wait.TID]; !ok {
				if len(byThread) >= 16 {
					continue
				}
				byThread[wait.TID] = next(fmt.Sprintf("%s %d", proc.Comm, wait.TID))
			}
			at := wait.Start
			title := fmt.Sprintf("%s %s at %d, %.2f ms", wait.Op, wait.Path, wait.Offset, float64(wait.End-wait.Start)/1e6)
			for _, phase := range Phases() {
				d := int64(wait.Phases[phase])
				if d == 0 {
					continue
				}
				p.Bars = append(p.Bars, bar{x(at), max(0.3, plot*float64(d)/span), byThread[wait.TID], colors()[phase], title + ": " + string(phase) + " " + time.Duration(d).String()})
				at += d
			}
		}
	}
	y += rowHeight / 2
	var used lanes
	laneY := map[uint32]int{}
	for i := range r.Requests {
		q := &r.Requests[i]
		lane := used.take(q.Start, q.End)
		if lane > 32 {
			continue
		}
		if _, ok := laneY[lane]; !ok {
			laneY[lane] = next(fmt.Sprintf("request lane %d", lane))
		}
		for _, piece := range side.pieces(q) {
			p.Bars = append(p.Bars, bar{x(piece.from), max(0.3, plot*float64(piece.length())/span), laneY[lane], colors()[piece.phase],
				fmt.Sprintf("%s %s at %d, by %s: %s %.3f ms", q.Op, q.Path, q.Offset, q.Comm, piece.phase, float64(piece.length())/1e6)})
		}
	}
	if len(p.Bars) > maxBars {
		slices.SortStableFunc(p.Bars, func(a, b bar) int {
			switch {
			case a.W > b.W:
				return -1
			case a.W < b.W:
				return 1
			}
			return 0
		})
		p.Bars = p.Bars[:maxBars]
	}
	p.Height = y + 20
	for i := range 11 {
		p.Ticks = append(p.Ticks, tick{labels + plot*float64(i)/10, fmt.Sprintf("%.2f s", p.Seconds*float64(i)/10)})
	}
	for i, phase := range Phases() {
		p.Legend = append(p.Legend, legend{labels + i*110, colors()[phase], string(phase)})
	}
	return pageTemplate().Execute(w, p)
}

func pageTemplate() *template.Template {
	return template.Must(template.New("page").Funcs(template.FuncMap{
		"ms":    func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()*1000) },
		"us":    func(d time.Duration) int64 { return d.Microseconds() },
		"phase": func(p Process, name string) string { return fmt.Sprintf("%.1f", p.Phases[Phase(name)].Seconds()*1000) },
	}).Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Where the time went</title>
<style>
body { font: 14px sans-serif; margin: 2em; }
svg text { font: 11px sans-serif; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: 2px 10px; text-align: right; border-bottom: 1px solid #ddd; }
td:last-child, th:last-child { text-align: left; }
</style></head><body>
<h1>Where the time went</h1>
<p>{{printf "%.3f" .Seconds}} s traced{{if .Report.Lost}}; <b>{{.Report.Lost}} events were lost: what is shown is not all</b>{{end}}. Above: threads, and what they slept for. Below: the requests of the kernel.</p>
<svg width="{{.Width}}" height="{{.Height}}" xmlns="http://www.w3.org/2000/svg">
{{range .Legend}}<rect x="{{.X}}" y="2" width="12" height="12" fill="{{.Color}}"/><text x="{{.X}}" y="12" dx="16">{{.Name}}</text>
{{end}}{{$h := .Height}}{{range .Ticks}}<line x1="{{.X}}" x2="{{.X}}" y1="34" y2="{{$h}}" stroke="#ddd"/><text x="{{.X}}" y="30">{{.Label}}</text>
{{end}}{{range .Rows}}<text x="4" y="{{.Y}}">{{.Label}}</text>
{{end}}{{range .Bars}}<rect x="{{printf "%.2f" .X}}" y="{{.Y}}" width="{{printf "%.2f" .W}}" height="13" fill="{{.Color}}"><title>{{.Title}}</title></rect>
{{end}}</svg>
<h2>Processes, ms blocked</h2>
<table><tr><th>pid</th><th>blocked</th><th>queue</th><th>wire</th><th>inflate</th><th>verify</th><th>reply</th><th>serve</th><th>process</th></tr>
{{range .Report.Processes}}<tr><td>{{.PID}}</td><td>{{ms .Blocked}}</td><td>{{phase . "queue"}}</td><td>{{phase . "wire"}}</td><td>{{phase . "inflate"}}</td><td>{{phase . "verify"}}</td><td>{{phase . "reply"}}</td><td>{{phase . "serve"}}</td><td>{{.Comm}}</td></tr>
{{end}}</table>
<h2>Files</h2>
<table><tr><th>blocked ms</th><th>reads</th><th>bytes</th><th>pages</th><th>hit</th><th>read ahead</th><th>miss</th><th>file</th></tr>
{{range .Files}}<tr><td>{{ms .Blocked}}</td><td>{{.Reads}}</td><td>{{.ReadBytes}}</td><td>{{.Pages}}</td><td>{{.Hits}}</td><td>{{.ReadAhead}}</td><td>{{.Misses}}</td><td>{{.Path}}</td></tr>
{{end}}</table>
<h2>Requests, us</h2>
<table><tr><th>count</th><th>errors</th><th>p50</th><th>p95</th><th>p99</th><th>max</th><th>request</th></tr>
{{range .Report.Ops}}<tr><td>{{.Count}}</td><td>{{.Errors}}</td><td>{{us .P50}}</td><td>{{us .P95}}</td><td>{{us .P99}}</td><td>{{us .Max}}</td><td>{{.Op}}</td></tr>
{{end}}</table>
</body></html>
`))
}
