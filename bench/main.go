// Command bench times the cold start of a container image, ours beside what people use today, over links of chosen speed:
// from asking for an image that nobody has pulled until its program prints its first line.
//
//	go run ./bench run            every image, form, link and system; at least 5 runs of each
//	go run ./bench run -quick     a few minutes of it
//	go run ./bench table FILE     the Markdown table of a results file
//
// Everything is wiped before each run, and the order is interleaved: one run of everything, then the next, so that what
// else the machine does hits all alike. Results are JSON lines (see Result).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/internal/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 2 && args[0] == "table" {
		results, err := read(args[1])
		if err != nil {
			return err
		}
		return writeTable(os.Stdout, results)
	}
	if len(args) == 0 || args[0] != "run" {
		return errors.New("usage: bench run [-quick] [-runs N] [-bin DIR] [-o FILE] [-systems a,b] [-forms a,b] [-links a,b] | bench table FILE")
	}
	p, out, err := parse(args[1:])
	if err != nil {
		return err
	}
	results, err := p.run(ctx, out)
	if err != nil {
		return err
	}
	fmt.Printf("\nresults in %s\n\n", out)
	return writeTable(os.Stdout, results)
}

// parse reads the options of `bench run`.
func parse(args []string) (plan, string, error) {
	var p plan
	f := flag.NewFlagSet("bench run", flag.ContinueOnError)
	quick := f.Bool("quick", false, "one link, two systems, three runs")
	f.IntVar(&p.runs, "runs", 5, "runs of each")
	bin := f.String("bin", "bin", "the `directory` of msb-fs and msb-launch")
	out := f.String("o", "", "the `file` for results; it must not exist (default bench/results/local/HOST-TIME.jsonl)")
	names := f.String("systems", "", "the `systems` to measure (default all there are)")
	forms := f.String("forms", "estargz,gzip", "the `forms` of the image")
	links := f.String("links", "", "the `links`: 100m, 1g, far (default 100m,1g)")
	if err := f.Parse(args); err != nil {
		return p, "", err
	}
	if *quick {
		p.runs = min(p.runs, 3)
		*names = orElse(*names, "mount,umoci")
		*links = orElse(*links, "100m")
	}
	for _, form := range strings.Split(*forms, ",") {
		p.forms = append(p.forms, testimage.Form(form))
	}
	var err error
	if p.links, err = chooseLinks(orElse(*links, "100m,1g")); err != nil {
		return p, "", err
	}
	if p.systems, err = chooseSystems(*names, *bin); err != nil {
		return p, "", err
	}
	if *out == "" {
		host, _ := os.Hostname()
		*out = filepath.Join("bench", "results", "local", host+"-"+time.Now().UTC().Format("20060102T150405")+".jsonl")
	}
	return p, *out, nil
}

func orElse(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

// read reads a results file.
func read(path string) ([]Result, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	defer f.Close()
	var all []Result
	for d := json.NewDecoder(f); d.More(); {
		var r Result
		if err := d.Decode(&r); err != nil {
			return nil, fmt.Errorf("read results of %s: %w", path, err)
		}
		all = append(all, r)
	}
	return all, nil
}
