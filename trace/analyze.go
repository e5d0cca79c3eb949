package trace

import (
	"cmp"
	"math/bits"
	"slices"
	"time"
)

// Recording is everything that has been seen of some mounts.
type Recording struct {
	Events []Event           `json:"events"`
	Spans  []Span            `json:"spans"`
	Mounts map[uint32]string `json:"mounts"` // directories by device
	Paths  map[uint64]string `json:"paths"`  // by node
	Lost   uint64            `json:"lost"`   // events that there was no room for
}

// Request is one FUSE request.
type Request struct {
	Op     string `json:"op"`
	Node   uint64 `json:"node"`
	Path   string `json:"path,omitempty"`
	Dev    uint32 `json:"dev"`
	Start  int64  `json:"start"` // ns
	End    int64  `json:"end"`
	Offset int64  `json:"offset,omitempty"` // of a READ
	Size   int64  `json:"size,omitempty"`
	Error  int32  `json:"error,omitempty"`
	PID    uint32 `json:"pid"` // of who sent it
	Comm   string `json:"comm"`
}

// OpStats are how long requests of one operation took.
type OpStats struct {
	Op     string        `json:"op"`
	Count  int           `json:"count"`
	Errors int           `json:"errors"`
	Total  time.Duration `json:"total_ns"`
	P50    time.Duration `json:"p50_ns"`
	P95    time.Duration `json:"p95_ns"`
	P99    time.Duration `json:"p99_ns"`
	Max    time.Duration `json:"max_ns"`
	// Histogram counts by time: bucket i is those of at least 2^i and less than 2^(i+1) us; bucket 0 has the shorter ones too.
	Histogram []int `json:"histogram_us_log2"`
}

// FileStats is what was wanted of one file.
type FileStats struct {
	Path      string        `json:"path"`
	Node      uint64        `json:"node"`
	Reads     int           `json:"reads"`     // READ requests
	ReadBytes int64         `json:"bytes"`     // that they asked for
	Pages     int           `json:"pages"`     // that programs asked for
	Hits      int           `json:"hits"`      // of Pages: were in the page cache
	ReadAhead int           `json:"readahead"` // of Pages: had come before they were asked for, in this trace
	Misses    int           `json:"misses"`    // of Pages: were waited for
	Mapped    int           `json:"mapped"`    // pages around faults that were mapped at once, at most
	Blocked   time.Duration `json:"blocked_ns"`
}

// Wait is a time that a thread slept for a file.
type Wait struct {
	TID    uint32                  `json:"tid"`
	Start  int64                   `json:"start"` // ns
	End    int64                   `json:"end"`
	Op     string                  `json:"op"`
	Path   string                  `json:"path"`
	Offset int64                   `json:"offset"` // of the chunk waited for longest, else of the request
	Chunk  string                  `json:"chunk,omitempty"`
	Phases map[Phase]time.Duration `json:"phases_ns"`
}

// Process is how long one process of the sandbox was blocked on the mount, and on what.
type Process struct {
	PID     uint32                  `json:"pid"`
	Comm    string                  `json:"comm"`
	Blocked time.Duration           `json:"blocked_ns"` // summed over its threads
	Phases  map[Phase]time.Duration `json:"phases_ns"`
	Waits   []Wait                  `json:"waits"` // in order
}

// Report is what a Recording says.
type Report struct {
	Start     int64       `json:"start"` // CLOCK_MONOTONIC, ns, of the first event
	End       int64       `json:"end"`
	Lost      uint64      `json:"lost"`
	Ops       []OpStats   `json:"ops"`       // the most costly first
	Files     []FileStats `json:"files"`     // the most waited for first
	Processes []Process   `json:"processes"` // the most blocked first
	Requests  []Request   `json:"-"`         // in order of start
	Spans     []Span      `json:"-"`
}

// Analyze works out what r says. It needs no privilege, and is deterministic.
func Analyze(r *Recording) *Report {
	events := slices.Clone(r.Events)
	slices.SortStableFunc(events, func(a, b Event) int { return cmp.Compare(a.TS, b.TS) })
	a := &analysis{r: r, files: map[nodeKey]*FileStats{}, report: &Report{Lost: r.Lost, Spans: r.Spans}}
	if len(events) > 0 {
		a.report.Start, a.report.End = int64(events[0].TS), int64(events[len(events)-1].TS)
	}
	a.requests(events)
	a.pages(events)
	a.sleeps(events)
	a.finish()
	return a.report
}

type nodeKey struct {
	dev  uint32
	node uint64
}

type requestKey struct {
	dev    uint32
	unique uint64
}

type analysis struct {
	r        *Recording
	report   *Report
	files    map[nodeKey]*FileStats
	byUnique map[requestKey]int // index into report.Requests
	reads    map[nodeKey][]int  // likewise: READs of a file, by start
}

func (a *analysis) path(node uint64) string {
	if p := a.r.Paths[node]; p != "" {
		return p
	}
	return "node " + uitoa(node)
}

func (a *analysis) file(dev uint32, node uint64) *FileStats {
	k := nodeKey{dev, node}
	if a.files[k] == nil {
		a.files[k] = &FileStats{Path: a.path(node), Node: node}
	}
	return a.files[k]
}

// requests pairs what was sent with what was answered.
func (a *analysis) requests(events []Event) {
	a.byUnique, a.reads = map[requestKey]int{}, map[nodeKey][]int{}
	for _, e := range events {
		k := requestKey{e.Dev, e.A}
		switch e.Kind {
		case Send:
			q := Request{Op: opName(e.Op), Node: e.B, Dev: e.Dev, Start: int64(e.TS), PID: e.PID, Comm: e.Comm, Path: a.path(e.B)}
			if q.Op == "READ" {
				q.Offset, q.Size = int64(e.C), int64(uint32(e.D))
				a.reads[nodeKey{e.Dev, e.B}] = append(a.reads[nodeKey{e.Dev, e.B}], len(a.report.Requests))
				f := a.file(e.Dev, e.B)
				f.Reads++
				f.ReadBytes += q.Size
			}
			a.byUnique[k] = len(a.report.Requests)
			a.report.Requests = append(a.report.Requests, q)
		case End:
			if i, ok := a.byUnique[k]; ok && a.report.Requests[i].End == 0 {
				a.report.Requests[i].End, a.report.Requests[i].Error = int64(e.TS), e.D
			}
		}
	}
	byOp := map[string][]Request{}
	for i := range a.report.Requests {
		q := &a.report.Requests[i]
		if q.End == 0 {
			q.End = a.report.End // still under way
			continue
		}
		byOp[q.Op] = append(byOp[q.Op], *q)
	}
	for op, qs := range byOp {
		a.report.Ops = append(a.report.Ops, opStats(op, qs))
	}
	slices.SortFunc(a.report.Ops, func(x, y OpStats) int {
		return cmp.Or(cmp.Compare(y.Total, x.Total), cmp.Compare(x.Op, y.Op))
	})
}

func opStats(op string, qs []Request) OpStats {
	s := OpStats{Op: op, Count: len(qs)}
	took := make([]time.Duration, len(qs))
	for i, q := range qs {
		d := time.Duration(q.End - q.Start)
		took[i] = d
		s.Total += d
		if q.Error != 0 {
			s.Errors++
		}
		bucket := max(0, bits.Len64(uint64(d/time.Microsecond))-1)
		for len(s.Histogram) <= bucket {
			s.Histogram = append(s.Histogram, 0)
		}
		s.Histogram[bucket]++
	}
	slices.Sort(took)
	at := func(p float64) time.Duration { return took[min(len(took)-1, int(p*float64(len(took))))] }
	s.P50, s.P95, s.P99, s.Max = at(0.50), at(0.95), at(0.99), took[len(took)-1]
	return s
}

// pages tells hits from misses. The kernel says when a read has its pages, and when a fault wants one; pages that the same thread
// brought since its last such event were waited for, others that came in this trace were read ahead, the rest was there.
func (a *analysis) pages(events []Event) {
	type page struct {
		dev uint32
		ino uint64
		no  uint64
	}
	type came struct {
		tid  uint32
		turn int // of that thread
	}
	cached := map[page]came{}
	turn := map[uint32]int{}
	wanted := map[uint32]page{} // by thread: a fault that is a hit unless its page comes
	for _, e := range events {
		switch e.Kind {
		case Add:
			for i := range e.pages() {
				p := page{e.Dev, e.A, e.B + i}
				cached[p] = came{e.TID, turn[e.TID]}
				if w, ok := wanted[e.TID]; ok && w == p {
					f := a.file(e.Dev, e.A)
					f.Hits--
					f.Misses++
					delete(wanted, e.TID)
					cached[p] = came{}
				}
			}
		case Get, Fault:
			f := a.file(e.Dev, e.A)
			delete(wanted, e.TID)
			for i := range e.pages() {
				p := page{e.Dev, e.A, e.B + i}
				c, ok := cached[p]
				f.Pages++
				switch {
				case e.Kind == Get && ok && c.tid == e.TID && c.turn == turn[e.TID]:
					f.Misses++
				case ok && c.tid != 0:
					f.ReadAhead++
				default:
					f.Hits++
					if e.Kind == Fault && !ok {
						wanted[e.TID] = p
					}
				}
				cached[p] = came{}
			}
			turn[e.TID]++
		case Map:
			a.file(e.Dev, e.A).Mapped += int(e.pages())
		}
	}
}

// lateWake is how long after a request's end who waits for it may still sleep: it has to get a processor.
const lateWake = int64(5 * time.Millisecond)

// sleeps finds out what everybody waited for.
func (a *analysis) sleeps(events []Event) {
	side := newDaemonSide(a.r.Spans)
	processes := map[uint32]*Process{}
	for _, e := range events {
		if e.Kind != Sleep {
			continue
		}
		slept := interval{int64(e.A), int64(e.TS)}
		q := a.waitedFor(e, slept)
		if q == nil {
			continue
		}
		w := a.wait(side, q, slept)
		w.TID = e.TID
		blocked := time.Duration(w.End - w.Start)
		if blocked <= 0 {
			continue
		}
		p := processes[e.PID]
		if p == nil {
			p = &Process{PID: e.PID, Phases: map[Phase]time.Duration{}}
			processes[e.PID] = p
		}
		p.Comm = e.Comm
		p.Blocked += blocked
		for phase, d := range w.Phases {
			p.Phases[phase] += d
		}
		p.Waits = append(p.Waits, w)
		a.file(e.Dev, q.Node).Blocked += blocked
	}
	for _, p := range processes {
		a.report.Processes = append(a.report.Processes, *p)
	}
	slices.SortFunc(a.report.Processes, func(x, y Process) int {
		return cmp.Or(cmp.Compare(y.Blocked, x.Blocked), cmp.Compare(x.PID, y.PID))
	})
}

// waitedFor is the request that e's thread slept for: the one that it sent, or the READ of the same file, whoever sent it, whose answer
// woke it. Nil where it slept for something else.
func (a *analysis) waitedFor(e Event, slept interval) *Request {
	if i, ok := a.byUnique[requestKey{e.Dev, e.C}]; ok && a.report.Requests[i].Op != "READ" {
		return &a.report.Requests[i]
	}
	var best *Request
	for _, i := range a.reads[nodeKey{e.Dev, e.B}] {
		q := &a.report.Requests[i]
		if q.Start > slept.to {
			break
		}
		if q.End+lateWake < slept.to || q.End < slept.from {
			continue // it had ended long before the sleeper woke
		}
		if best == nil || q.End <= slept.to && (best.End > slept.to || q.End > best.End) {
			best = q
		}
	}
	return best
}

// wait splits a sleep for q into phases.
func (a *analysis) wait(side *daemonSide, q *Request, slept interval) Wait {
	w := Wait{Start: max(slept.from, q.Start), End: min(slept.to, q.End+lateWake), Op: q.Op, Path: q.Path, Offset: q.Offset, Phases: map[Phase]time.Duration{}}
	in := interval{w.Start, w.End}
	for _, p := range side.pieces(q) {
		if d := in.and(p.interval).length(); d > 0 {
			w.Phases[p.phase] += time.Duration(d)
		}
	}
	if d := w.End - max(w.Start, q.End); d > 0 { // the answer was there: to get a processor belongs to it
		w.Phases[Reply] += time.Duration(d)
	}
	var longest int64
	for _, c := range side.chunksOf(q) {
		if d := in.and(interval{c.Start, c.End}).length(); d > longest {
			longest, w.Offset, w.Chunk = d, c.Offset, c.Chunk
		}
	}
	return w
}

func (a *analysis) finish() {
	for _, f := range a.files {
		a.report.Files = append(a.report.Files, *f)
	}
	slices.SortFunc(a.report.Files, func(x, y FileStats) int {
		return cmp.Or(cmp.Compare(y.Blocked, x.Blocked), cmp.Compare(y.ReadBytes, x.ReadBytes), cmp.Compare(x.Path, y.Path), cmp.Compare(x.Node, y.Node))
	})
}
