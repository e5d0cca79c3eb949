package trace

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestTimelineInABrowser opens the page as its readers do: every wait and every phase is there to be seen.
func TestTimelineInABrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed")
	}
	dir := t.TempDir()
	if _, err := Write(dir, recorded()); err != nil {
		t.Fatal(err)
	}
	open := func(args ...string) []byte {
		t.Helper()
		args = append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--user-data-dir=" + t.TempDir(), "--window-size=1500,900", "--hide-scrollbars"}, args...)
		var said bytes.Buffer
		cmd := exec.CommandContext(t.Context(), browser, append(args, "file://"+filepath.Join(dir, HTMLFile))...)
		cmd.Stderr = &said
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "TMPDIR="+t.TempDir())
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", browser, err, said.String())
		}
		return out
	}
	dom := string(open("--dump-dom"))
	for _, want := range []string{"<title>READ /bin/x at 0", "prog 10</text>", "other 11</text>", "request lane 1</text>", "<td>/bin/x</td>", "<td>LOOKUP</td>"} {
		if !strings.Contains(dom, want) {
			t.Errorf("the browser sees no %s", want)
		}
	}
	shot := filepath.Join(dir, "shot.png")
	open("--screenshot=" + shot)
	seen, err := pixels(shot)
	if err != nil {
		t.Fatal(err)
	}
	for phase, color := range colors() {
		if seen[color] < 50 {
			t.Errorf("%d pixels are %s, the color of %s", seen[color], color, phase)
		}
	}
}

// pixels counts the pixels of each color of a picture.
func pixels(path string) (map[string]int, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		return nil, err
	}
	seen := map[string]int{}
	for y := img.Bounds().Min.Y; y < img.Bounds().Max.Y; y++ {
		for x := img.Bounds().Min.X; x < img.Bounds().Max.X; x++ {
			r, g, b, _ := img.At(x, y).RGBA()
			seen[fmt.Sprintf("#%02x%02x%02x", r>>8, g>>8, b>>8)]++
		}
	}
	return seen, nil
}

// TestSlicesNest holds the trace to what viewers ask of it: of two slices on one thread, one holds the other or they do not touch.
func TestSlicesNest(t *testing.T) {
	var out bytes.Buffer
	if err := WriteChrome(&out, Analyze(recorded())); err != nil {
		t.Fatal(err)
	}
	var trace struct {
		TraceEvents []struct {
			Ph       string
			Name     string
			TS, Dur  float64
			PID, TID uint32
		}
	}
	if err := json.Unmarshal(out.Bytes(), &trace); err != nil {
		t.Fatal(err)
	}
	type slice struct{ from, to float64 }
	threads := map[[2]uint32][]slice{}
	for _, e := range trace.TraceEvents {
		if e.Ph == "X" {
			at := [2]uint32{e.PID, e.TID}
			for _, s := range threads[at] {
				if e.TS < s.to-0.01 && e.TS+e.Dur > s.to+0.01 || s.from < e.TS+e.Dur-0.01 && s.from > e.TS+0.01 && s.to > e.TS+e.Dur+0.01 {
					t.Errorf("%s at %.1f us crosses another on thread %v", e.Name, e.TS, at)
				}
			}
			threads[at] = append(threads[at], slice{e.TS, e.TS + e.Dur})
		}
	}
	if len(threads) < 5 {
		t.Errorf("only %d threads", len(threads))
	}
	names := 0
	for _, e := range trace.TraceEvents {
		if e.Ph == "M" && slices.Contains([]string{"process_name", "thread_name"}, e.Name) {
			names++
		}
	}
	if names < 4 {
		t.Errorf("%d names of processes", names)
	}
}
