package main

import (
	"cmp"
	"slices"
	"time"
)

// Record is one cold start: a line of cold.jsonl. Times are seconds since the image was asked for; 0 is what did not happen or
// cannot be seen from outside.
type Record struct {
	Time          time.Time `json:"time"`
	Version       string    `json:"version"`        // of this project's code, as git describes it
	System        string    `json:"system"`         // key
	SystemVersion string    `json:"system_version"` // as it says itself
	Image         string    `json:"image"`
	Form          string    `json:"form"`
	Link          string    `json:"link"` // key
	Run           int       `json:"run"`  // from 1

	Resolved float64 `json:"resolved,omitempty"` // the reference is a digest
	Mounted  float64 `json:"mounted,omitempty"`  // there is a root directory to look into; after a full pull, it is unpacked
	VM       float64 `json:"vm_up,omitempty"`    // the guest's agent has spoken
	Output   float64 `json:"first_output"`
	Ready    float64 `json:"ready"`              // the program's line
	Complete float64 `json:"complete,omitempty"` // every byte is local; when a full pull is unpacked, or, of the lazy, when it was waited for

	Bytes    int64   `json:"bytes"`    // over the link when ready, headers included
	Requests int64   `json:"requests"` // when ready
	Idle     float64 `json:"idle"`     // of the time until ready, in which nothing came over the link

	ImageBytes int64            `json:"image_bytes"` // compressed, in this form
	CPU        float64          `json:"cpu"`         // seconds of all processes together when ready; the registry is not among them
	CPUAll     float64          `json:"cpu_all"`     // by the end of the run
	RSS        map[string]int64 `json:"rss"`         // peak bytes of each program by name
	RSSTotal   int64            `json:"rss_total"`   // peak bytes of all at one moment
	Load       string           `json:"load"`        // of the machine before the run, as /proc/loadavg has it
}

// Failure is a start that gave no numbers: a line of errors.jsonl.
type Failure struct {
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	System  string    `json:"system"`
	Image   string    `json:"image"`
	Form    string    `json:"form"`
	Link    string    `json:"link"`
	Error   string    `json:"error"`
}

// cell is what a start is a run of.
type cell struct{ Image, Form, Link, System string }

func (r Record) cell() cell { return cell{r.Image, r.Form, r.Link, r.System} }

// summary is the middle of several numbers and their spread.
type summary struct {
	N                     int
	Median, P95, Min, Max float64
}

// summarize sums up numbers; there must be at least one.
func summarize(values []float64) summary {
	s := slices.Sorted(slices.Values(values))
	return summary{N: len(s), Median: median(s), P95: percentile(s, 0.95), Min: s[0], Max: s[len(s)-1]}
}

// median is the middle of sorted numbers.
func median(s []float64) float64 { return percentile(s, 0.5) }

// percentile interpolates between the nearest of sorted numbers.
func percentile(s []float64, p float64) float64 {
	at := p * float64(len(s)-1)
	i := int(at)
	if i+1 >= len(s) {
		return s[len(s)-1]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

// column is one number of each record.
func column(rs []Record, f func(Record) float64) []float64 {
	var out []float64
	for _, r := range rs {
		out = append(out, f(r))
	}
	return out
}

// byCell groups records; the cells are in the order of links, images, forms and systems that the bench has.
func byCell(rs []Record) ([]cell, map[cell][]Record) {
	groups := map[cell][]Record{}
	var cells []cell
	for _, r := range rs {
		c := r.cell()
		if groups[c] == nil {
			cells = append(cells, c)
		}
		groups[c] = append(groups[c], r)
	}
	place := func(c cell) [4]int {
		return [4]int{
			slices.IndexFunc(links(), func(l link) bool { return l.key == c.Link }),
			slices.IndexFunc(workloads(), func(w workload) bool { return w.name == c.Image }),
			slices.IndexFunc(systems(), func(s system) bool { return s.key == c.System }),
			slices.IndexFunc(forms(), func(f form) bool { return f.key == c.Form }),
		}
	}
	slices.SortStableFunc(cells, func(a, b cell) int {
		x, y := place(a), place(b)
		return cmp.Or(slices.Compare(x[:], y[:]), cmp.Compare(a.Image, b.Image))
	})
	return cells, groups
}
