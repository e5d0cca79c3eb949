// Command testreport shows what `go test -json` on its standard input says as go test itself would without -v, and fails
// when a test failed, when nothing ran, or (with -strict) when a test was skipped that nobody has explained.
//
//	go test -json ./... | testreport -strict -skips .ci/skips
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is one line of test2json's output (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	ImportPath                    string // of build output
}

func main() {
	name := flag.String("name", "tests", "what the run is called in its last line")
	skips := flag.String("skips", "", "the `file` of skips that are explained")
	strict := flag.Bool("strict", false, "fail on any other skip")
	flag.Parse()
	allowed, err := readSkips(*skips)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	r := report{out: os.Stdout, allowed: allowed, output: map[string][]string{}}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(r.end(*name, *strict))
}

// readSkips reads lines of "package test reason".
func readSkips(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read explained skips: %w", err)
	}
	var out []string
	for i, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 3 {
			return nil, fmt.Errorf("%s:%d: want package, test and reason", path, i+1)
		}
		out = append(out, f[0]+" "+f[1])
	}
	return out, nil
}

// report gathers events and prints what matters as it comes.
type report struct {
	out                     io.Writer
	allowed                 []string
	output                  map[string][]string // of tests that run, by package and name
	passed, failed, skipped int
	broken                  int      // packages that failed
	unexplained             []string // skips
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(r.out, "%s", line) // go's own, as of a package that does not build
			} else {
				r.event(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read test events: %w", err)
		}
	}
}

func (r *report) event(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		if e.Test == "" {
			if !strings.HasPrefix(e.Output, "PASS") {
				fmt.Fprint(r.out, e.Output)
			}
			return
		}
		r.output[key] = append(r.output[key], e.Output)
	case "pass":
		if e.Test != "" {
			r.passed++
		}
		delete(r.output, key)
	case "fail":
		if e.Test == "" {
			r.broken++
			// Of tests that a panic or a timeout cut short there is no end, only output.
			for k := range r.output {
				if strings.HasPrefix(k, e.Package+" ") {
					r.show(k)
				}
			}
			return
		}
		r.failed++
		r.show(key)
	case "skip":
		if e.Test == "" {
			return // a package without tests
		}
		r.skipped++
		r.show(key)
		if !r.explained(key) {
			r.unexplained = append(r.unexplained, key)
		}
	}
}

func (r *report) show(key string) {
	fmt.Fprint(r.out, strings.Join(r.output[key], ""))
	delete(r.output, key)
}

func (r *report) explained(key string) bool {
	for _, a := range r.allowed {
		prefix, all := strings.CutSuffix(a, "*")
		if key == a || all && strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// end prints the last lines and is the exit status.
func (r *report) end(name string, strict bool) int {
	status := 0
	if strict && len(r.unexplained) > 0 {
		status = 1
		fmt.Fprintf(r.out, "skipped, and nothing explains why that is right here:\n")
		for _, s := range r.unexplained {
			fmt.Fprintf(r.out, "\t%s\n", s)
		}
	}
	if r.failed > 0 || r.broken > 0 || r.passed == 0 {
		status = 1
	}
	fmt.Fprintf(r.out, "%s: %d passed, %d failed, %d skipped\n", name, r.passed, max(r.failed, r.broken), r.skipped)
	return status
}
