package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Sample is one measurement of a set other than cold starts: a line of samples.jsonl. Samples of the same Set, Case and System are
// runs of the same thing; the report shows their median and spread, and the ratio to the System that is the Base.
type Sample struct {
	Time    time.Time `json:"time"`
	Version string    `json:"version"` // of this project's code, as git describes it
	Set     string    `json:"set"`     // warm, guest, cow, boot, more
	Case    string    `json:"case"`    // what was done, as "find", "tar", "open 1000 files"
	System  string    `json:"system"`  // who did it, as "msb-fs", "ext4"
	Base    bool      `json:"base,omitempty"`
	Run     int       `json:"run"` // from 1
	Value   float64   `json:"value"`
	Unit    string    `json:"unit"`                     // s, MB, MB/s, 1/s
	More    bool      `json:"more_is_better,omitempty"` // else less is
	Note    string    `json:"note,omitempty"`
}

// results is a directory of results, open for appending. It is not safe for concurrent use.
type results struct {
	dir     string
	version string
}

// defaultResults is where results go when nobody says otherwise.
func defaultResults() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return filepath.Join("bench", "results", host+"-"+time.Now().UTC().Format(time.DateOnly))
}

// openResults makes dir if it is not there. What is added goes after what is there.
func openResults(dir string) (*results, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open results: %w", err)
	}
	return &results{dir: dir, version: codeVersion()}, nil
}

// addSample appends s to samples.jsonl. Time and Version are filled in.
func (r *results) addSample(s Sample) error {
	s.Time, s.Version = time.Now().UTC(), r.version
	return appendLine(filepath.Join(r.dir, samplesFile), s)
}

// Names of files in a directory of results.
const (
	machineFile = "machine.jsonl"
	imagesFile  = "images.jsonl"
	coldFile    = "cold.jsonl"
	errorsFile  = "errors.jsonl"
	samplesFile = "samples.jsonl"
)

// appendLine appends v to the file at path as one line of JSON, in one write.
func appendLine(path string, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// readLines reads a file of JSON lines. A file that does not exist has none; a last line without an end is what an interrupted
// writer left, and is passed over.
func readLines[T any](path string) ([]T, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var all []T
	for n, line := range strings.SplitAfter(string(raw), "\n") {
		if !strings.HasSuffix(line, "\n") || strings.TrimSpace(line) == "" {
			continue
		}
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			return nil, fmt.Errorf("read results: %s, line %d: %w", path, n+1, err)
		}
		all = append(all, v)
	}
	return all, nil
}
