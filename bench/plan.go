package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"
)

// choice is what to measure: every image in every form over every link by every system, as far as they go together.
type choice struct{ images, forms, links, systems []string }

// standard is what a full run measures: one image in all its forms by everybody over all links, and every image as each system reads it
// best over a fast link. Five rounds of it take about 25 minutes on two cores; --images, --forms and --links name more.
func standard() []choice {
	one, fast, both := []string{"python"}, []string{"1g"}, []string{"1g", "100m"}
	every := []string{"tiny", "redis", "node", "openjdk", "postgresql", "golang", "scipy"}
	return []choice{
		{one, []string{"estargz", "gzip+index", "gzip"}, both, []string{"mount"}},
		{one, []string{"estargz"}, both, []string{"vm", "stargz"}},
		{one, []string{"gzip"}, both, []string{"containerd", "podman"}},
		{one, []string{"gzip+soci"}, both, []string{"soci"}},
		{one, []string{"gzip"}, fast, []string{"umoci", "vm"}},
		{every, []string{"estargz"}, fast, []string{"mount", "stargz"}},
		{every, []string{"gzip+index", "gzip"}, fast, []string{"mount"}},
		{every, []string{"gzip"}, fast, []string{"containerd"}},
		{[]string{"redis", "node", "golang", "scipy"}, []string{"estargz"}, []string{"100m"}, []string{"mount", "stargz"}},
		{[]string{"tiny", "redis", "golang"}, []string{"estargz"}, fast, []string{"vm"}},
		{[]string{"golang", "scipy"}, []string{"gzip+soci"}, fast, []string{"soci"}},
		{one, []string{"zstd", "zstd-chunked", "gzip+soci"}, fast, []string{"mount"}},
		{one, []string{"estargz", "gzip+index", "gzip+soci", "gzip"}, []string{"far"}, []string{"mount", "stargz", "soci"}},
	}
}

// plan is what to measure, where from and where to.
type plan struct {
	choices []choice
	runs    int
	budget  time.Duration // no start begins later than this; 0 is no end
	systems []system
	images  []workload
	store   store
	results *results
	said    io.Writer
}

// tasks are the starts of one round, each once.
func (p *plan) tasks(ctx context.Context) ([]task, error) {
	var all []task
	seen := map[cell]bool{}
	for _, c := range p.choices {
		for _, name := range c.images {
			w := p.images[slices.IndexFunc(p.images, func(w workload) bool { return w.name == name })]
			fs, err := pick(forms(), c.forms, func(f form) string { return f.key })
			if err != nil {
				return nil, err
			}
			for _, f := range fs {
				systems := slices.DeleteFunc(slices.Clone(p.systems), func(s system) bool { return !slices.Contains(c.systems, s.key) || !s.takes(f) })
				if len(systems) == 0 {
					continue
				}
				img, err := p.store.image(ctx, w, f)
				if errors.Is(err, errNotBuilt) {
					fmt.Fprintln(p.said, err)
					continue
				}
				if err != nil {
					return nil, err
				}
				ls, err := pick(links(), c.links, func(l link) string { return l.key })
				if err != nil {
					return nil, err
				}
				for _, l := range ls {
					for _, s := range systems {
						k := task{image: img, link: l, system: s, bin: p.store.bin}
						if !seen[k.cell()] {
							seen[k.cell()] = true
							all = append(all, k)
						}
					}
				}
			}
		}
	}
	return all, nil
}

// maxFailures is how often a cell may fail before it is left alone.
const maxFailures = 2

// run measures what the results do not have yet and returns how many starts failed.
func (p *plan) run(ctx context.Context) (failed int, err error) {
	begin := time.Now()
	tasks, err := p.tasks(ctx)
	if err != nil {
		return 0, err
	}
	if len(tasks) == 0 {
		return 0, errors.New("nothing to measure: none of the systems takes any of the forms")
	}
	if err := p.measureFacts(ctx, tasks); err != nil {
		return 0, err
	}
	records, err := readLines[Record](filepath.Join(p.results.dir, coldFile))
	if err != nil {
		return 0, err
	}
	done := map[cell]int{}
	for _, r := range records {
		done[r.cell()]++
	}
	failures := map[cell]int{}
	for round := 1; round <= p.runs; round++ {
		// Nobody is always first, and what belongs together stays together.
		for i := range tasks {
			k := tasks[i]
			if round%2 == 0 {
				k = tasks[len(tasks)-1-i]
			}
			if done[k.cell()] >= round || failures[k.cell()] >= maxFailures {
				continue
			}
			if ctx.Err() != nil {
				return failed, ctx.Err()
			}
			if p.budget > 0 && time.Since(begin) > p.budget {
				fmt.Fprintf(p.said, "the time is over in round %d of %d; the same command goes on from here\n", round, p.runs)
				return failed, nil
			}
			k.complete = round == 1 // it is the wire's time, or the processor's, and little more
			if err := p.one(ctx, k, done[k.cell()]+1); err != nil {
				if ctx.Err() != nil {
					return failed, err
				}
				failed++
				failures[k.cell()]++
				continue
			}
			done[k.cell()]++
		}
	}
	return failed, nil
}

// one measures a start and writes down what came of it; the error is that of the start.
func (p *plan) one(ctx context.Context, k task, run int) error {
	r, err := k.measure(ctx)
	c := k.cell()
	if err != nil {
		fmt.Fprintf(p.said, "%-10s %-10s %-12s %-4s FAILED: %v\n", c.System, c.Image, c.Form, c.Link, err)
		if ctx.Err() != nil {
			return err
		}
		return errors.Join(err, appendLine(filepath.Join(p.results.dir, errorsFile), Failure{
			Time: time.Now().UTC(), Version: p.results.version, System: c.System, Image: c.Image, Form: c.Form, Link: c.Link, Error: err.Error(),
		}))
	}
	r.Run, r.Version = run, p.results.version
	fmt.Fprintf(p.said, "%-10s %-10s %-12s %-4s %2d %7.2f s %8.1f MB %4d requests %6.1f s CPU %5d MB\n",
		c.System, c.Image, c.Form, c.Link, run, r.Ready, float64(r.Bytes)/1e6, r.Requests, r.CPU, r.RSSTotal>>20)
	return appendLine(filepath.Join(p.results.dir, coldFile), r)
}

// measureFacts measures of each image what is not written down yet.
func (p *plan) measureFacts(ctx context.Context, tasks []task) error {
	file := filepath.Join(p.results.dir, imagesFile)
	facts, err := readLines[Facts](file)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, f := range facts {
		known[f.Image] = true
	}
	for _, k := range tasks {
		w := k.image.workload
		if known[w.name] {
			continue
		}
		known[w.name] = true
		f, err := p.store.facts(ctx, w)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			if w.from != nil && errors.Is(err, errNotReady) {
				return err // nor would it be anywhere else
			}
			fmt.Fprintf(p.said, "no limit is known for %s: %v\n", w.name, err)
			continue
		}
		if err := appendLine(file, f); err != nil {
			return err
		}
	}
	return nil
}

// pick is choose with a list.
func pick[T any](all []T, keys []string, key func(T) string) ([]T, error) {
	var out []T
	for _, v := range all {
		if slices.Contains(keys, key(v)) {
			out = append(out, v)
		}
	}
	if len(out) != len(keys) {
		return nil, fmt.Errorf("one of %q is unknown", keys)
	}
	return out, nil
}
