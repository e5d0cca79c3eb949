package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Names of the files that Write makes.
const (
	ChromeFile    = "trace.json"     // for ui.perfetto.dev and chrome://tracing
	HTMLFile      = "timeline.html"  // for a browser, self-contained
	ReportFile    = "report.json"    // a Report
	RecordingFile = "recording.json" // the Recording that the others come from
	ProfileFile   = "pages.json"     // the pages that programs have asked for, []Touched
)

// Write analyses rec and writes what it says to files in dir, which is made if need be.
func Write(dir string, rec *Recording) (*Report, error) {
	r := Analyze(rec)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("write trace: %w", err)
	}
	asJSON := func(v any) func(io.Writer) error {
		return func(w io.Writer) error { return json.NewEncoder(w).Encode(v) }
	}
	for name, write := range map[string]func(io.Writer) error{
		ChromeFile:    func(w io.Writer) error { return WriteChrome(w, r) },
		HTMLFile:      func(w io.Writer) error { return WriteHTML(w, r) },
		ReportFile:    asJSON(r),
		RecordingFile: asJSON(rec),
		ProfileFile:   asJSON(Profile(rec)),
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("write trace: %w", err)
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return nil, fmt.Errorf("write trace: %s: %w", name, err)
		}
	}
	return r, nil
}
