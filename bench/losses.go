package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// loss is a case in which this project is not the fastest, or is far from what is possible.
type loss struct {
	Link, Image, System, Form string
	Ready, Limit              float64
	Other                     string // who is faster with the same image; "" is nobody
	OtherReady                float64
}

// Ratio is to the limit; 0 where it is not known.
func (l loss) Ratio() string {
	if l.Limit == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f x", l.Ready/l.Limit)
}

// farFrom is the ratio to the limit from which a case is listed.
const farFrom = 1.5

// comparable says whether two forms are the same image for a user: what lies beside it may differ.
func comparableForms(a, b string) bool {
	base := func(f string) string { f, _, _ = strings.Cut(f, "+"); return f }
	return base(a) == base(b)
}

// ours says whether a system is this project's.
func ours(system string) bool { return system == "mount" || system == "vm" }

// losses are all such cases.
func (s *set) losses() []loss {
	cells, groups := byCell(s.records)
	ready := func(c cell) float64 {
		return summarize(column(groups[c], func(r Record) float64 { return r.Ready })).Median
	}
	var out []loss
	for _, c := range cells {
		if !ours(c.System) {
			continue
		}
		l := loss{Link: linkName(c.Link), Image: c.Image, System: systemName(c.System), Form: c.Form, Ready: ready(c), Limit: s.limit(c.Image, c.Link)}
		for _, o := range cells {
			if ours(o.System) || o.Image != c.Image || o.Link != c.Link || !comparableForms(o.Form, c.Form) {
				continue
			}
			if v := ready(o); v < l.Ready && (l.Other == "" || v < l.OtherReady) {
				l.Other, l.OtherReady = systemName(o.System)+", "+o.Form, v
			}
		}
		if l.Other != "" || l.Limit > 0 && l.Ready > farFrom*l.Limit {
			out = append(out, l)
		}
	}
	return out
}

// versions are those of this project and of every system, as they were measured.
func (s *set) versions() []string {
	var out []string
	for _, r := range s.records {
		name := r.SystemVersion
		if ours(r.System) {
			name = "msb-fs and msb-launch " + r.Version
		}
		if !slices.Contains(out, name) && name != "" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// last is when the last start was.
func (s *set) last() time.Time {
	var t time.Time
	for _, r := range s.records {
		if r.Time.After(t) {
			t = r.Time
		}
	}
	for _, v := range s.samples {
		if v.Time.After(t) {
			t = v.Time
		}
	}
	return t
}
