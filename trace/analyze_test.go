package trace

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const ms = uint64(time.Millisecond)

// recorded is a cold read of two chunks of /bin/x by one process, the second of which another process's read waits for as well; and a lookup.
func recorded() *Recording {
	read := func(ts, unique, node, off uint64, size int32, pid uint32) Event {
		return Event{TS: ts, Kind: Send, Op: 15, A: unique, B: node, C: off, D: size, Dev: 7, TID: pid, PID: pid, Comm: "prog"}
	}
	return &Recording{
		Paths: map[uint64]string{5: "/bin/x", 1: "/"},
		Events: []Event{
			{TS: 1 * ms, Kind: Send, Op: 1, A: 2, B: 1, Dev: 7, TID: 10, PID: 10, Comm: "prog"},
			{TS: 2 * ms, Kind: End, Op: 1, A: 2, D: -2, Dev: 7},
			{TS: 2*ms + ms/10, Kind: Sleep, A: 1*ms + ms/10, B: 1, C: 2, Dev: 7, TID: 10, PID: 10, Comm: "prog"},
			read(10*ms, 4, 5, 0, 8192, 10),
			{TS: 10 * ms, Kind: Add, A: 5, B: 0, C: 2, Dev: 7, TID: 10, PID: 10},
			{TS: 100 * ms, Kind: End, Op: 15, A: 4, Dev: 7},
			{TS: 100*ms + ms/10, Kind: Sleep, A: 10 * ms, B: 5, C: 4, Dev: 7, TID: 10, PID: 10, Comm: "prog"},
			{TS: 100*ms + ms/5, Kind: Get, A: 5, B: 0, C: 1, Dev: 7, TID: 10, PID: 10},
			{TS: 90 * ms, Kind: Fault, A: 5, B: 1, Dev: 7, TID: 11, PID: 11, Comm: "other"},
			{TS: 100*ms + ms/10, Kind: Sleep, A: 90 * ms, B: 5, Dev: 7, TID: 11, PID: 11, Comm: "other"},
			{TS: 110 * ms, Kind: Get, A: 5, B: 0, C: 1, Dev: 7, TID: 11, PID: 11},
			// It sleeps for something else: no request of the file is under way.
			{TS: 900 * ms, Kind: Sleep, A: 500 * ms, B: 5, Dev: 7, TID: 11, PID: 11, Comm: "other"},
		},
		Spans: []Span{
			{Kind: "chunk", Start: 12e6, Asked: 13e6, FillStart: 15e6, FillEnd: 60e6, End: 62e6, File: 5, Offset: 0, Size: 4096, Layer: "l", Chunk: "aa"},
			{Kind: "chunk", Start: 62e6, Asked: 62e6, FillStart: 63e6, FillEnd: 90e6, End: 91e6, File: 5, Offset: 4096, Size: 4096, Layer: "l", Chunk: "bb"},
			{Kind: "chunk", Start: 12e6, Asked: 12e6, FillStart: 12e6, FillEnd: 99e6, End: 99e6, File: 6, Offset: 0, Size: 4096, Layer: "l", Chunk: "cc"},
			{Kind: "blob", Start: 15e6, End: 50e6, Layer: "l"},
			{Kind: "blob", Start: 40e6, End: 55e6, Layer: "l"},
			{Kind: "blob", Start: 63e6, End: 85e6, Layer: "l", Offset: 1000, Size: 500},
			{Kind: "queue", Start: 62e6, End: 70e6, Layer: "l", Offset: 900, Size: 1000},
			{Kind: "queue", Start: 72e6, End: 80e6, Layer: "l", Offset: 1500, Size: 100}, // of others' bytes
			{Kind: "blob", Start: 0, End: 99e6, Layer: "another"},
		},
	}
}

func TestPhases(t *testing.T) {
	r := Analyze(recorded())
	if len(r.Processes) != 2 || r.Processes[0].PID != 10 || r.Processes[1].PID != 11 {
		t.Fatalf("processes: %+v", r.Processes)
	}
	// 10..13 and 13..15 and 62..70 queue, 15..55 and 70..85 wire, 55..60 and 85..90 inflate, 60..62 and 90..91 verify, 91..100.1 reply.
	want := map[Phase]float64{Queue: 13, Wire: 55, Inflate: 10, Verify: 3, Reply: 9.1}
	read := r.Processes[0].Waits[1]
	var sum time.Duration
	for phase, d := range read.Phases {
		if got := d.Seconds() * 1000; got < want[phase]-0.001 || got > want[phase]+0.001 {
			t.Errorf("%s: %.3f ms, want %.3f", phase, got, want[phase])
		}
		sum += d
	}
	if len(read.Phases) != len(want) || sum != time.Duration(read.End-read.Start) {
		t.Errorf("phases %v make %v of %v", read.Phases, sum, time.Duration(read.End-read.Start))
	}
	if read.Chunk != "aa" || read.Path != "/bin/x" {
		t.Errorf("waited for %q of %q", read.Chunk, read.Path)
	}
	if w := r.Processes[0].Waits[0]; w.Op != "LOOKUP" || w.Phases[Serve] == 0 {
		t.Errorf("the lookup: %+v", w)
	}
	other := r.Processes[1]
	if len(other.Waits) != 1 || other.Waits[0].Path != "/bin/x" || other.Blocked < 10*time.Millisecond || other.Blocked > 11*time.Millisecond {
		t.Errorf("who waited for another's read: %+v", other)
	}
}

func TestPagesAndOps(t *testing.T) {
	r := Analyze(recorded())
	f := r.Files[0]
	// The first read waited for both pages; the other's fault and read found them, or waited with it.
	if f.Path != "/bin/x" || f.Reads != 1 || f.ReadBytes != 8192 || f.Pages != 5 || f.Misses+f.ReadAhead+f.Hits != f.Pages || f.Hits < 2 {
		t.Errorf("%+v", f)
	}
	if len(r.Ops) != 2 || r.Ops[0].Op != "READ" || r.Ops[0].P50 != 90*time.Millisecond || r.Ops[1].Errors != 1 {
		t.Errorf("%+v", r.Ops)
	}
	// 90 ms is 2^16.4 us.
	if h := r.Ops[0].Histogram; len(h) != 17 || h[16] != 1 {
		t.Errorf("histogram: %v", h)
	}
	touched := Profile(recorded())
	if len(touched) != 1 || len(touched[0].Pages) != 2 || touched[0].Path != "/bin/x" {
		t.Errorf("touched: %+v", touched)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	rec := recorded()
	rec.Paths[5] = `/bin/</title><script>alert("x")`
	if _, err := Write(dir, rec); err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var chrome struct {
		TraceEvents []struct {
			Ph, Name string
			TS, Dur  float64
		}
	}
	if err := json.Unmarshal(read(ChromeFile), &chrome); err != nil || len(chrome.TraceEvents) < 10 {
		t.Errorf("chrome: %d events, %v", len(chrome.TraceEvents), err)
	}
	for _, e := range chrome.TraceEvents {
		if e.Ph == "X" && e.Dur < 0 {
			t.Errorf("backwards: %+v", e)
		}
	}
	html := string(read(HTMLFile))
	if strings.Contains(html, "<script") || strings.Contains(html, "http://") && strings.Count(html, "http://") != strings.Count(html, `xmlns="http://`) {
		t.Error("the page runs or needs something else")
	}
	svg := html[strings.Index(html, "<svg") : strings.Index(html, "</svg>")+6]
	if err := xml.Unmarshal([]byte(svg), new(struct{})); err != nil || strings.Count(svg, "<rect") < 10 {
		t.Errorf("timeline: %d rectangles, %v", strings.Count(svg, "<rect"), err)
	}
	var again Recording
	if err := json.Unmarshal(read(RecordingFile), &again); err != nil {
		t.Fatal(err)
	}
	var a, b bytes.Buffer
	if err := WriteTop(&a, Analyze(&again), 10); err != nil {
		t.Fatal(err)
	}
	if err := WriteTop(&b, Analyze(rec), 10); err != nil {
		t.Fatal(err)
	}
	if a.String() != b.String() || !strings.Contains(a.String(), "READ") {
		t.Errorf("a recording that was written says:\n%s\nand before:\n%s", a.String(), b.String())
	}
}

// Whatever events come, in whatever order and however wrong, analysis ends and answers.
func FuzzAnalyze(f *testing.F) {
	b, err := json.Marshal(recorded())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"events":[{"kind":3,"b":18446744073709551615,"c":18446744073709551615},{"kind":5,"c":18446744073709551615},{"kind":7,"a":9}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Recording
		if json.Unmarshal(b, &r) != nil {
			return
		}
		report := Analyze(&r)
		if err := WriteHTML(&bytes.Buffer{}, report); err != nil {
			t.Error(err)
		}
		Profile(&r)
	})
}
