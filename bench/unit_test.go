package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSummary(t *testing.T) {
	s := summarize([]float64{3, 1, 2, 10, 4})
	if s.N != 5 || s.Median != 3 || s.Min != 1 || s.Max != 10 || s.P95 < 8.7 || s.P95 > 8.9 {
		t.Errorf("%+v", s)
	}
	if s := summarize([]float64{2, 1}); s.Median != 1.5 || s.P95 != 1.95 {
		t.Errorf("%+v", s)
	}
}

func TestLimit(t *testing.T) {
	f := Facts{Native: 0.1, Touched: 1_250_000, Opened: 12_500_000}
	slow := link{mbit: 100, rtt: 20 * time.Millisecond}
	if l := f.limit(slow); l < 0.1599 || l > 0.1601 { // a tenth of a second on the wire and three round trips
		t.Error(l)
	}
	if l := f.fileLimit(slow); l < 1.0599 || l > 1.0601 {
		t.Error(l)
	}
	if l := f.limit(link{mbit: 1000, rtt: time.Millisecond}); l != 0.1 { // the program takes longer
		t.Error(l)
	}
}

func TestChoices(t *testing.T) {
	if l, err := chooseLinks("1g,100m"); err != nil || len(l) != 2 || l[0].mbit != 1000 {
		t.Errorf("%v, %v", l, err)
	}
	for _, err := range []error{second(chooseLinks("dsl")), second(chooseForms("rpm")), second(chooseWorkloads("windows")), second(chooseSystems("docker", "", &strings.Builder{}))} {
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("an unknown name: %v", err)
		}
	}
	for _, c := range standard() {
		for _, list := range [][2][]string{{c.images, keys(workloads(), func(w workload) string { return w.name })}, {c.forms, allForms()}, {c.systems, keys(systems(), func(s system) string { return s.key })}} {
			for _, k := range list[0] {
				if !slices.Contains(list[1], k) {
					t.Errorf("the full run names %q, which is not there", k)
				}
			}
		}
	}
}

// TestMissingSystems asks for systems of which one has its programs on the PATH.
func TestMissingSystems(t *testing.T) {
	dir := t.TempDir()
	for _, program := range []string{"skopeo", "umoci", "containerd", "ctr", "runc", "nydusd"} {
		if err := os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	var said strings.Builder
	got, err := chooseSystems("stargz,soci,nydus,umoci", dir, &said)
	if err != nil || len(got) != 1 || got[0].key != "umoci" {
		t.Errorf("%d systems: %v", len(got), err)
	}
	for _, want := range []string{"no containerd-stargz-grpc", "no soci-snapshotter-grpc", "nydus-snapshotter is not measured: there is no containerd-nydus-grpc"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("%q is not in %q", want, said.String())
		}
	}
	if _, err := chooseSystems("nydus", dir, &said); err == nil || !strings.Contains(err.Error(), "bench setup") {
		t.Errorf("none is there: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func keys[T any](all []T, key func(T) string) []string {
	var out []string
	for _, v := range all {
		out = append(out, key(v))
	}
	return out
}

// TestLinesSurviveAnInterruption reads what a writer has left that was killed.
func TestLinesSurviveAnInterruption(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.jsonl")
	for n := range 2 {
		if err := appendLine(path, Failure{Image: "a", Link: strings.Repeat("x", n)}); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"image":"b`)
	f.Close()
	got, err := readLines[Failure](path)
	if err != nil || len(got) != 2 || got[1].Link != "x" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := readLines[Failure](path + ".no"); err != nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
}

// TestMeterCountsOrphans starts a process that leaves another behind, which uses processor time.
func TestMeterCountsOrphans(t *testing.T) {
	if err := adopt(); err != nil {
		t.Fatal(err)
	}
	m := startMeter()
	// The shell in between has gone when the loop works.
	if err := exec.Command("sh", "-c", `sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; exec sleep 60' >/dev/null 2>&1 &`).Run(); err != nil {
		t.Fatal(err)
	}
	seen := func() bool { // a process may end, or become another, while it is looked at
		m.look()
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.total > 0 && m.peaks["sh"]+m.peaks["sleep"] > 0
	}
	for deadline := time.Now().Add(time.Minute); m.cpu() < 50*time.Millisecond || !seen(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v of processor time, seen: %v", m.cpu(), seen())
		}
	}
	before := m.cpu()
	if err := endAll(); err != nil {
		t.Fatal(err)
	}
	if left := descendants(); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	if after := m.cpu(); after < before {
		t.Errorf("%v of processor time, and %v when all have ended", before, after)
	}
	peaks, total := m.stop()
	if total <= 0 || peaks["sh"]+peaks["sleep"] <= 0 {
		t.Errorf("%v, %d", peaks, total)
	}
}

// TestReadiness gives the output of programs in pieces.
func TestReadiness(t *testing.T) {
	for _, c := range []struct {
		line   string
		pieces []string
		ready  bool
	}{
		{"ready", []string{"starting\nre", "ady: yes\n"}, true},
		{"ready", []string{"starting\n", "not ready\n"}, false},
		{"ready", []string{"ready"}, false}, // the line has not ended
		{"ready", []string{strings.Repeat("x", 1<<20), "\nready\nready\n"}, true},
		{"", []string{"anything"}, true},
	} {
		calls := 0
		tr := &trial{img: &image{workload: workload{ready: c.line}}, start: time.Now(), ready: make(chan struct{}), marks: map[string]float64{}, atReady: func() { calls++ }}
		for _, p := range c.pieces {
			tr.Write([]byte(p))
		}
		if (tr.at(markReady) > 0) != c.ready || (calls == 1) != c.ready || tr.at(markOutput) == 0 {
			t.Errorf("%.20q: ready at %v, %d calls", c.pieces, tr.at(markReady), calls)
		}
	}
}

func TestFloors(t *testing.T) {
	s := &set{dir: "results"}
	add := func(image, form, system string, ready float64) {
		s.records = append(s.records, Record{Image: image, Form: form, Link: "1g", System: system, Ready: ready})
	}
	for _, image := range []string{"python", "golang"} {
		add(image, "gzip", "containerd", 10)
		for _, f := range []string{"estargz", "gzip+index", "gzip"} {
			add(image, f, "mount", 1)
		}
	}
	var out strings.Builder
	if err := s.checkFloors(&out); err != nil || strings.Count(out.String(), "10.0 x faster") != 6 {
		t.Errorf("%v\n%s", err, out.String())
	}
	add("golang", "estargz", "mount", 9)
	add("golang", "estargz", "mount", 9)
	if err := s.checkFloors(&out); err == nil || !strings.Contains(err.Error(), "golang as estargz over 1g: 1.1 x") {
		t.Error(err)
	}
	s.records = s.records[:3]
	if err := s.checkFloors(&out); err == nil || !strings.Contains(err.Error(), "was not measured") {
		t.Error(err)
	}
}
