package main

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strings"
)

// bar is one line of a chart; low and high are its spread, none when high is 0.
type bar struct {
	label, note string
	color       string
	value       float64
	low, high   float64
	text        string // beside it; "" is the value
}

// barGroup is bars that belong together, with a mark across all of them: a limit, the size of an image, what is 1.
type barGroup struct {
	name string
	mark float64 // 0: none
	bars []bar
}

// Geometry of charts, in pixels of the picture.
const (
	chartWidth = 980
	labelWidth = 320
	plotWidth  = chartWidth - labelWidth - 110 // the rest is for numbers
	rowHeight  = 20
	headHeight = 28
	axisHeight = 34
)

// drawing writes the elements of one SVG picture.
type drawing struct{ strings.Builder }

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(&d.Builder, format+"\n", args...) }

func (d *drawing) text(x, y float64, class, s string) {
	d.add(`<text x="%.1f" y="%.1f" class="%s">%s</text>`, x, y, class, html.EscapeString(s))
}

func (d *drawing) line(x1, y1, x2, y2 float64, class string) {
	d.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`, x1, y1, x2, y2, class)
}

func (d *drawing) rect(x, y, w, h float64, color, title string) {
	d.add(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"><title>%s</title></rect>`, x, y, max(w, 1), h, color, html.EscapeString(title))
}

// picture is the whole SVG, with a name for those who cannot see it.
func (d *drawing) picture(height float64, name string) template.HTML {
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 %d %.0f" width="%d" height="%.0f" role="img" aria-label="%s">`,
		chartWidth, height, chartWidth, height, html.EscapeString(name))
	return template.HTML(head + "\n" + d.String() + "</svg>") //nolint:gosec // everything in it has been escaped above
}

// axis draws a horizontal axis from zero to at least most, with lines through the plot, and returns the scale in pixels per unit.
func (d *drawing) axis(most, top, bottom float64, unit string) float64 {
	if most <= 0 {
		most = 1
	}
	step := niceStep(most / 6)
	end := math.Ceil(most/step) * step
	scale := plotWidth / end
	for i := 0; float64(i)*step <= end*1.0001; i++ {
		x := labelWidth + float64(i)*step*scale
		d.line(x, top, x, bottom, "grid")
		d.text(x, bottom+16, "tick", strings.TrimSpace(fmt.Sprintf("%g %s", math.Round(float64(i)*step*1e6)/1e6, unit)))
	}
	return scale
}

// niceStep is the next of 1, 2 and 5 times a power of ten.
func niceStep(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*p {
			return m * p
		}
	}
	return 10 * p
}

// barChart draws groups of horizontal bars with their spread, on an axis from zero. The mark of a group is a line across its bars.
func barChart(name, unit, markName string, groups []barGroup) template.HTML {
	rows, most := 0, 0.0
	for _, g := range groups {
		rows += len(g.bars)
		most = max(most, g.mark)
		for _, b := range g.bars {
			most = max(most, b.value, b.high)
		}
	}
	var d drawing
	bottom := float64(rows*rowHeight + len(groups)*headHeight)
	scale := d.axis(most, 0, bottom, unit)
	y := 0.0
	for _, g := range groups {
		title := g.name
		if g.mark > 0 && markName != "" {
			title += fmt.Sprintf("   (%s %s)", markName, number(g.mark, unit))
		}
		d.text(0, y+19, "group", title)
		y += headHeight
		top := y
		for _, b := range g.bars {
			d.bar(b, y, scale, unit)
			y += rowHeight
		}
		if g.mark > 0 {
			x := labelWidth + g.mark*scale
			d.line(x, top-4, x, y, "mark")
		}
	}
	return d.picture(bottom+axisHeight, name)
}

// bar draws one bar with its label, its spread and its number.
func (d *drawing) bar(b bar, y, scale float64, unit string) {
	d.text(labelWidth-8, y+14, "label", b.label)
	text := b.text
	if text == "" {
		text = number(b.value, unit)
	}
	d.rect(labelWidth, y+3, b.value*scale, rowHeight-6, b.color, b.label+": "+text+b.note)
	end := b.value
	if b.high > 0 {
		middle := y + rowHeight/2
		d.line(labelWidth+b.low*scale, middle, labelWidth+b.high*scale, middle, "spread")
		d.line(labelWidth+b.low*scale, middle-3, labelWidth+b.low*scale, middle+3, "spread")
		d.line(labelWidth+b.high*scale, middle-3, labelWidth+b.high*scale, middle+3, "spread")
		end = max(end, b.high)
	}
	d.text(labelWidth+end*scale+6, y+14, "value", text)
}

// number is a value with a sensible number of digits.
func number(v float64, unit string) string {
	digits := 1
	switch {
	case v < 1:
		digits = 3
	case v < 10:
		digits = 2
	case v >= 1000:
		digits = 0
	}
	return strings.TrimSpace(fmt.Sprintf("%.*f %s", digits, v, unit))
}

// phase is a part of a timeline, from the end of the one before.
type phase struct {
	Name, Color string
	end         float64 // seconds; 0 is left out
}

// timelineRow is one start.
type timelineRow struct {
	label  string
	phases []phase
}

// timeline draws starts below each other, each as its phases, on one axis from zero.
func timeline(name string, rows []timelineRow) template.HTML {
	most := 0.0
	for _, r := range rows {
		for _, p := range r.phases {
			most = max(most, p.end)
		}
	}
	const height = 26
	var d drawing
	bottom := float64(len(rows) * height)
	scale := d.axis(most, 0, bottom, "s")
	for i, r := range rows {
		y, from := float64(i*height), 0.0
		d.text(labelWidth-8, y+17, "label", r.label)
		for _, p := range r.phases {
			if p.end <= from {
				continue
			}
			d.rect(labelWidth+from*scale, y+4, (p.end-from)*scale, height-8, p.Color, fmt.Sprintf("%s: %s until %.3f s", r.label, p.Name, p.end))
			from = p.end
		}
		d.text(labelWidth+from*scale+6, y+17, "value", number(from, "s"))
	}
	return d.picture(bottom+axisHeight, name)
}
