package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
)

// trial is one image, run cold and then warm from a home of its own.
type trial struct {
	o        options
	title    string
	ref      string
	insecure bool
	link     *registry.Link // nil with a registry that is not ours

	home, launch, fs string
}

// result is what a trial measured.
type result struct {
	title      string
	cold, warm timing
	complete   time.Duration // from the start of the cold run until every byte was local
}

// timing is what --timing-json leaves.
type timing struct {
	Events []struct {
		Name         string  `json:"name"`
		MS           float64 `json:"ms"`
		BytesFetched int64   `json:"bytes_fetched"`
	} `json:"events"`
	ImageBytes int64 `json:"image_bytes"`
}

// at is an event's time and the bytes fetched by then.
func (t timing) at(name string) (ms float64, fetched int64, ok bool) {
	for _, e := range t.Events {
		if e.Name == name {
			return e.MS, e.BytesFetched, true
		}
	}
	return 0, 0, false
}

func (t trial) run(ctx context.Context) (r result, err error) {
	r.title = t.title
	if t.launch, err = t.o.binary("msb-launch"); err != nil {
		return r, err
	}
	if t.fs, err = t.o.binary("msb-fs"); err != nil {
		return r, err
	}
	home, remove, err := tempHome()
	if err != nil {
		return r, err
	}
	t.home = home
	defer func() {
		// Not with ctx: after an interrupt the daemon has to end as well.
		stop := exec.Command(t.fs, "stop")
		stop.Env = t.env()
		said, stopErr := stop.CombinedOutput()
		if stopErr != nil {
			stopErr = fmt.Errorf("stop the daemon: %w: %s", stopErr, bytes.TrimSpace(said))
		}
		err = errors.Join(err, stopErr, remove())
	}()

	fmt.Printf("\n== %s, cold: nothing of it is here\n", t.title)
	start := time.Now()
	if r.cold, err = t.launchOnce(ctx); err != nil {
		return r, err
	}
	fmt.Printf("-- the rest arrives in the background\n")
	if err := t.waitComplete(ctx, start); err != nil {
		return r, err
	}
	r.complete = time.Since(start)
	fmt.Printf("\n== %s, again: everything is here\n", t.title)
	r.warm, err = t.launchOnce(ctx)
	return r, err
}

func (t trial) env() []string { return append(os.Environ(), "MSB_HOME="+t.home) }

// launchOnce runs the program in a microVM and shows its output and the timeline.
func (t trial) launchOnce(ctx context.Context) (timing, error) {
	file := filepath.Join(t.home, "timing.json")
	args := []string{"run", "--timing"}
	if t.insecure {
		args = append(args, "--insecure")
	}
	if t.o.command != "" {
		args = append(args, "--entrypoint", "/bin/sh", t.ref, "-c", t.o.command)
	} else {
		args = append(args, t.ref)
	}
	fmt.Printf("$ msb-launch %s\n", quoted(args))
	cmd := exec.CommandContext(ctx, t.launch, slices.Insert(args, 1, "--timing-json", file)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Env = t.env()
	out := &stamped{w: os.Stdout, start: time.Now(), link: t.link}
	if t.link != nil {
		out.before = t.link.Stats().Down
	}
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Run(); err != nil {
		return timing{}, fmt.Errorf("msb-launch run %s: %w", t.ref, err)
	}
	if t.link != nil {
		fmt.Printf("(seen from outside: first output after %.2f s, when %.1f MB had come over the link)\n",
			out.first.Seconds(), float64(out.down)/1e6)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return timing{}, fmt.Errorf("read the timeline: %w", err)
	}
	var tm timing
	if err := json.Unmarshal(b, &tm); err != nil {
		return timing{}, fmt.Errorf("read the timeline: %w", err)
	}
	return tm, nil
}

// stamped notes when its first byte passes, and what had come over the link by then.
type stamped struct {
	w            io.Writer
	start        time.Time
	link         *registry.Link
	before, down int64
	first        time.Duration // 0: nothing yet
}

func (s *stamped) Write(p []byte) (int, error) {
	if s.first == 0 {
		s.first = time.Since(s.start)
		if s.link != nil {
			s.down = s.link.Stats().Down - s.before
		}
	}
	return s.w.Write(p)
}

// waitComplete shows how the image's bytes come, until the daemon has no more to fetch.
func (t trial) waitComplete(ctx context.Context, start time.Time) error {
	moved, last := time.Now(), int64(-1)
	for {
		var st struct {
			Fetching []string `json:"fetching"`
		}
		if err := t.ask(ctx, &st, "status"); err != nil {
			return err
		}
		if !slices.ContainsFunc(st.Fetching, t.named) {
			fmt.Printf("%9.1f s  all of it is here\n", time.Since(start).Seconds())
			return nil
		}
		have, size, err := t.progress(ctx)
		if err != nil {
			return err
		}
		if have != last {
			moved, last = time.Now(), have
		}
		if size > 0 {
			fmt.Printf("%9.1f s  %5.1f of %.1f MB\n", time.Since(start).Seconds(), float64(have)/1e6, float64(size)/1e6)
		}
		if time.Since(moved) > time.Minute {
			return fmt.Errorf("nothing more of %s has come for a minute: %d of %d bytes are here", t.ref, have, size)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// named says whether the daemon means this trial's image: it spells names out, as "docker.io/library/python:3.12".
func (t trial) named(ref string) bool { return ref == t.ref || strings.Contains(ref, "/"+t.ref) }

// ask runs an msb-fs command that prints JSON.
func (t trial) ask(ctx context.Context, into any, command string) error {
	cmd := exec.CommandContext(ctx, t.fs, command, "--format", "json")
	cmd.Env = t.env()
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, into)
	}
	if err != nil {
		return fmt.Errorf("msb-fs %s: %w: %s", command, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// progress asks the daemon how many of the image's bytes are local; zeros when it has just let go of it.
func (t trial) progress(ctx context.Context) (have, size int64, err error) {
	var st struct {
		Images []struct {
			Reference string `json:"reference"`
			Layers    []struct {
				Size int64 `json:"size"`
				Have int64 `json:"have"`
			} `json:"layers"`
		} `json:"images"`
	}
	if err := t.ask(ctx, &st, "stats"); err != nil {
		return 0, 0, err
	}
	for _, i := range st.Images {
		if !t.named(i.Reference) {
			continue
		}
		for _, l := range i.Layers {
			have += l.Have
			size += l.Size
		}
	}
	return have, size, nil
}
