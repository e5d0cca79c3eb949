package main

import (
	"fmt"
	"slices"
)

// setTitles are what the sets of samples are about.
func setTitles() map[string]string {
	return map[string]string{
		"warm":  "Warm, on the host: everything is local",
		"guest": "Warm, in a guest",
		"cow":   "Copy on write",
		"boot":  "Boot of a microVM",
		"trace": "What watching by eBPF costs",
		"more":  "The second sandbox to the twentieth",
	}
}

// caseOf is what samples of several systems compare.
type caseOf struct{ set, name string }

// sampleSections makes a section of each set: the ratio of everybody to the base, and the values themselves.
func (s *set) sampleSections() []section {
	var names []string
	for _, v := range s.samples {
		if !slices.Contains(names, v.Set) {
			names = append(names, v.Set)
		}
	}
	var out []section
	for _, name := range names {
		title := setTitles()[name]
		if title == "" {
			title = name
		}
		sec := section{Title: title, Text: "Medians with their spread. Ratios are to what the case is compared with, at the dashed line; where more is better they are turned over, so that a shorter bar is always the better one."}
		if ratios := s.ratioGroups(name); len(ratios) > 0 {
			sec.Plots = append(sec.Plots, plot{"ratios", barChart(title+", ratios", "x", "", ratios)})
		}
		for _, unit := range s.units(name) {
			sec.Plots = append(sec.Plots, plot{"values, " + unit, barChart(title+", "+unit, unit, "", s.valueGroups(name, unit))})
		}
		out = append(out, sec)
	}
	return out
}

// cases groups a set's samples by case, in the order they came.
func (s *set) cases(name string) ([]caseOf, map[caseOf]map[string][]Sample) {
	var order []caseOf
	all := map[caseOf]map[string][]Sample{}
	for _, v := range s.samples {
		if v.Set != name {
			continue
		}
		c := caseOf{v.Set, v.Case}
		if all[c] == nil {
			all[c] = map[string][]Sample{}
			order = append(order, c)
		}
		all[c][v.System] = append(all[c][v.System], v)
	}
	return order, all
}

func values(vs []Sample) []float64 {
	var out []float64
	for _, v := range vs {
		out = append(out, v.Value)
	}
	return out
}

// systemsOf are the systems of a case, the base last.
func systemsOf(m map[string][]Sample) []string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	slices.SortStableFunc(names, func(a, b string) int { return rank(m[a][0].Base) - rank(m[b][0].Base) })
	return names
}

func rank(last bool) int {
	if last {
		return 1
	}
	return 0
}

// ratioGroups are the ratios of each case's systems to its base.
func (s *set) ratioGroups(name string) []barGroup {
	order, all := s.cases(name)
	var groups []barGroup
	for _, c := range order {
		names := systemsOf(all[c])
		base := names[len(names)-1]
		if !all[c][base][0].Base {
			continue
		}
		b := summarize(values(all[c][base])).Median
		g := barGroup{name: c.name, mark: 1}
		for _, n := range names[:len(names)-1] {
			v := summarize(values(all[c][n]))
			if b <= 0 || v.Min <= 0 {
				continue
			}
			ratio, low, high := v.Median/b, v.Min/b, v.Max/b
			if all[c][n][0].More {
				ratio, low, high = b/v.Median, b/v.Max, b/v.Min
			}
			g.bars = append(g.bars, bar{label: n + " / " + base, color: sampleColor(n), value: ratio, low: low, high: high, text: fmt.Sprintf("%.2f x", ratio)})
		}
		if len(g.bars) > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

// units are those of a set's samples.
func (s *set) units(name string) []string {
	var out []string
	for _, v := range s.samples {
		if v.Set == name && !slices.Contains(out, v.Unit) {
			out = append(out, v.Unit)
		}
	}
	return out
}

// valueGroups are the values of each case that has this unit.
func (s *set) valueGroups(name, unit string) []barGroup {
	order, all := s.cases(name)
	var groups []barGroup
	for _, c := range order {
		g := barGroup{name: c.name}
		for _, n := range systemsOf(all[c]) {
			if all[c][n][0].Unit != unit {
				continue
			}
			v := summarize(values(all[c][n]))
			b := bar{label: n, color: sampleColor(n), value: v.Median, note: fmt.Sprintf(", p95 %.3f, %d runs", v.P95, v.N)}
			if v.N > 1 {
				b.low, b.high = v.Min, v.Max
			}
			g.bars = append(g.bars, b)
		}
		if len(g.bars) > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

func sampleColor(system string) string {
	if len(system) >= 3 && system[:3] == "msb" {
		return color("mount", "estargz")
	}
	return "hsl(28,65%,60%)"
}
