package trace

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// chromeEvent is one line of a trace as chrome://tracing and Perfetto read it (Trace Event Format,
// https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). Times are in us.
type chromeEvent struct {
	Name string         `json:"name"`
	Cat  string         `json:"cat,omitempty"`
	Ph   string         `json:"ph"`
	TS   float64        `json:"ts"`
	Dur  float64        `json:"dur,omitempty"`
	PID  uint32         `json:"pid"`
	TID  uint32         `json:"tid"`
	Args map[string]any `json:"args,omitempty"`
}

// Processes of the trace that are none of the host's: numbers above what Linux gives to one.
const (
	kernelPID = 1<<22 + 1 // FUSE requests
	daemonPID = 1<<22 + 2 // what the daemon did
)

// WriteChrome writes r for chrome://tracing and ui.perfetto.dev: who slept for what, the requests, and what the daemon did.
func WriteChrome(w io.Writer, r *Report) error {
	us := func(ns int64) float64 { return float64(ns-r.Start) / 1000 }
	name := func(pid uint32, n string) chromeEvent {
		return chromeEvent{Name: "process_name", Ph: "M", PID: pid, Args: map[string]any{"name": n}}
	}
	out := []chromeEvent{name(kernelPID, "FUSE requests"), name(daemonPID, "msb-fs daemon")}
	for _, p := range r.Processes {
		out = append(out, name(p.PID, p.Comm))
		for _, wait := range p.Waits {
			args := map[string]any{"path": wait.Path, "offset": wait.Offset, "chunk": wait.Chunk}
			for phase, d := range wait.Phases {
				args[string(phase)+"_us"] = float64(d.Nanoseconds()) / 1000
			}
			out = append(out, chromeEvent{Name: wait.Op + " " + wait.Path, Cat: "blocked", Ph: "X", TS: us(wait.Start), Dur: float64(wait.End-wait.Start) / 1000,
				PID: p.PID, TID: wait.TID, Args: args})
		}
	}
	// Requests overlap, and so do chunks: each goes into the first lane that is free.
	var requests, chunks, blobs, queued lanes
	for _, q := range r.Requests {
		out = append(out, chromeEvent{Name: q.Op, Cat: "fuse", Ph: "X", TS: us(q.Start), Dur: float64(q.End-q.Start) / 1000, PID: kernelPID, TID: requests.take(q.Start, q.End),
			Args: map[string]any{"path": q.Path, "offset": q.Offset, "size": q.Size, "pid": q.PID, "comm": q.Comm, "error": q.Error}})
	}
	spans := slices.Clone(r.Spans)
	slices.SortFunc(spans, func(a, b Span) int { return int(a.Start - b.Start) })
	for _, s := range spans {
		e := chromeEvent{Name: "chunk " + s.Path, Cat: s.Class, Ph: "X", TS: us(s.Start), Dur: float64(s.End-s.Start) / 1000, PID: daemonPID,
			Args: map[string]any{"offset": s.Offset, "size": s.Size, "chunk": s.Chunk, "layer": s.Layer, "fetched": s.FillEnd > 0}}
		switch s.Kind {
		case "blob":
			e.Name, e.TID = "blob", 1<<16+blobs.take(s.Start, s.End)
		case "queue":
			e.Name, e.TID = "queue", 1<<17+queued.take(s.Start, s.End)
		default:
			e.TID = chunks.take(s.Start, s.End)
		}
		out = append(out, e)
	}
	return json.NewEncoder(w).Encode(map[string]any{"traceEvents": out, "displayTimeUnit": "ms"})
}

// lanes hands out the lowest number that is free at a time. What it is asked for comes in order.
type lanes []int64

func (l *lanes) take(start, end int64) uint32 {
	for i, until := range *l {
		if until <= start {
			(*l)[i] = end
			return uint32(i + 1)
		}
	}
	*l = append(*l, end)
	return uint32(len(*l))
}

// WriteTop writes tables for people: how long requests took by operation, and the n files that were waited for longest.
func WriteTop(w io.Writer, r *Report, n int) error {
	fmt.Fprintf(w, "%-14s %8s %7s %10s %10s %10s %10s\n", "REQUEST", "COUNT", "ERRORS", "P50 us", "P95 us", "P99 us", "MAX us")
	for _, o := range r.Ops {
		fmt.Fprintf(w, "%-14s %8d %7d %10d %10d %10d %10d\n", o.Op, o.Count, o.Errors, o.P50.Microseconds(), o.P95.Microseconds(), o.P99.Microseconds(), o.Max.Microseconds())
	}
	fmt.Fprintf(w, "\n%10s %6s %10s %7s %7s %7s %7s  %s\n", "BLOCKED ms", "READS", "BYTES", "PAGES", "HIT", "AHEAD", "MISS", "FILE")
	for _, f := range r.Files[:min(n, len(r.Files))] {
		fmt.Fprintf(w, "%10.1f %6d %10d %7d %7d %7d %7d  %q\n", f.Blocked.Seconds()*1000, f.Reads, f.ReadBytes, f.Pages, f.Hits, f.ReadAhead, f.Misses, f.Path)
	}
	fmt.Fprintf(w, "\n%8s %10s", "PID", "BLOCKED ms")
	for _, p := range Phases() {
		fmt.Fprintf(w, " %9s", p)
	}
	fmt.Fprintf(w, "  PROCESS\n")
	for _, p := range r.Processes {
		fmt.Fprintf(w, "%8d %10.1f", p.PID, p.Blocked.Seconds()*1000)
		for _, phase := range Phases() {
			fmt.Fprintf(w, " %9.1f", p.Phases[phase].Seconds()*1000)
		}
		fmt.Fprintf(w, "  %q\n", p.Comm)
	}
	if r.Lost > 0 {
		fmt.Fprintf(w, "\n%d events were lost: what is shown is not all\n", r.Lost)
	}
	return nil
}
