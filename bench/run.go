package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/testimage"
)

func runCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "run",
		Short:              "Time cold starts",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, out, err := parse(args)
			if err != nil {
				return err
			}
			all, err := p.run(cmd.Context(), out)
			if err != nil {
				return err
			}
			fmt.Printf("\nresults in %s\n\n", out)
			return writeTable(os.Stdout, all)
		},
	}
}

func tableCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "table FILE",
		Short: "Print results as Markdown",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := read(args[0])
			if err != nil {
				return err
			}
			return writeTable(os.Stdout, all)
		},
	}
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
