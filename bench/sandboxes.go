package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/cli"
)

// sandboxesCommand measures what one more sandbox costs.
func sandboxesCommand() *cobra.Command {
	var bin, out, images, systemKeys string
	var most int
	cmd := &cobra.Command{
		Use:   "sandboxes",
		Short: "Time the second sandbox of an image to the twentieth, and count their memory",
		Long: "Start sandboxes of one image one after the other and leave them running: the first from nothing, the others timed. Memory is that of all\n" +
			"processes of the system, what they share counted once (PSS). As root.",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if most < 2 {
				return cli.Usagef("--most %d: at least 2", most)
			}
			said := cmd.ErrOrStderr()
			abs, err := filepath.Abs(bin)
			if err != nil {
				return err
			}
			s, err := newStore(abs, said)
			if err != nil {
				return err
			}
			chosen, err := chooseSystems(systemKeys, abs, said)
			if err != nil {
				return err
			}
			if err := adopt(); err != nil {
				return err
			}
			res, err := openResults(out)
			if err != nil {
				return err
			}
			for _, name := range strings.Split(images, ",") {
				for _, sys := range chosen {
					c := crowd{store: s, system: sys, most: most, said: said, add: res.addSample}
					if err := c.measure(cmd.Context(), name); err != nil {
						return fmt.Errorf("%s, %s: %w", sys.name, name, err)
					}
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&bin, "bin", "bin", "the directory of msb-fs and msb-launch")
	f.StringVarP(&out, "out", "o", defaultResults(), "the directory of results")
	f.StringVar(&images, "images", "tiny,python", "images: tiny, python")
	f.StringVar(&systemKeys, "systems", "mount,vm,containerd,podman", "systems: mount, vm, containerd, podman")
	f.IntVar(&most, "most", 20, "how many sandboxes there will be")
	return cmd
}

// stayers are what is run in sandboxes that stay: programs that are ready and then wait to be asked to end. As the first process of a
// container they would not be asked otherwise.
func stayers() map[string][]string {
	return map[string][]string{
		"tiny": {"/bin/sh", "-c", "trap 'exit 0' TERM; echo ready; sleep 3600 & wait"},
		"python": {"/usr/bin/python3", "-c", "import asyncio, email.mime.text, hashlib, http.server, json, logging, ssl, xml.dom.minidom\n" +
			"import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('ready', flush=True)\nsignal.pause()"},
	}
}

// crowd is many sandboxes of one image, by one system.
type crowd struct {
	store  store
	system system
	most   int
	said   io.Writer
	add    func(Sample) error
}

// task is the start of a program that stays, in the form that the system reads best, over a fast link.
func (c crowd) task(ctx context.Context, image string) (task, error) {
	argv := stayers()[image]
	if argv == nil || !c.system.again {
		return task{}, errors.New("there is no way to start many of them")
	}
	ws, err := chooseWorkloads(image)
	if err != nil {
		return task{}, err
	}
	key := "gzip"
	if len(c.system.reads) > 0 {
		key = c.system.reads[0]
	}
	fs, err := chooseForms(key)
	if err != nil {
		return task{}, err
	}
	ls, err := chooseLinks("1g")
	if err != nil {
		return task{}, err
	}
	img, err := c.store.image(ctx, ws[0], fs[0])
	if err != nil {
		return task{}, err
	}
	img.ready, img.config.Entrypoint, img.config.Cmd = readyLine, nil, argv
	return task{image: img, link: ls[0], system: c.system, bin: c.store.bin}, nil
}

// measure starts the sandboxes, and ends them.
func (c crowd) measure(ctx context.Context, image string) (err error) {
	k, err := c.task(ctx, image)
	if err != nil {
		return err
	}
	srv, ref, err := k.image.serve(k.link.open())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Close()) }()
	t, err := k.newTrial(ref)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running []<-chan error
	defer func() {
		cancel()
		for _, ended := range running {
			<-ended // because it was told to
		}
		err = errors.Join(err, k.wipe(t))
	}()
	if c.system.prepare != nil {
		if err := c.system.prepare(ctx, t); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	var one int64
	for n := range c.most {
		next := t.further(n)
		ended, err := c.start(ctx, next)
		running = append(running, ended)
		if err == nil && n == 0 && c.system.complete != nil {
			err = c.system.complete(ctx, t)
		}
		if err != nil {
			return fmt.Errorf("sandbox %d: %w", n+1, err)
		}
		time.Sleep(300 * time.Millisecond) // for what ends once a sandbox has started
		memory := sharedMemory()
		if n == 0 {
			one = memory
			fmt.Fprintf(c.said, "%-22s %-8s %2d %7.2f s %8.1f MB\n", c.system.name, image, 1, next.at(markReady), float64(one)/1e6)
		} else if err := c.note(image, n, next.at(markReady), float64(memory-one)/1e6/float64(n)); err != nil {
			return err
		}
	}
	return nil
}

// start starts a sandbox and returns when it is ready; ended says when it has ended, which it does when ctx is over.
func (c crowd) start(ctx context.Context, t *trial) (ended <-chan error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	t.start = time.Now()
	go func() { done <- c.system.start(ctx, t) }()
	select {
	case <-t.ready:
		context.AfterFunc(ctx, cancel)
		return done, nil
	case err := <-done:
		cancel()
		done <- err
		return done, fmt.Errorf("it ended: %w", err)
	case <-time.After(2 * time.Minute):
		cancel()
		return done, errors.New("it is not ready after two minutes")
	}
}

// note adds what sandbox n, from 1 after the first, has cost.
func (c crowd) note(image string, n int, seconds, each float64) error {
	fmt.Fprintf(c.said, "%-22s %-8s %2d %7.2f s %8.1f MB for each after the first\n", c.system.name, image, n+1, seconds, each)
	s := Sample{Set: "more", System: c.system.name, Base: c.system.key == "containerd", Run: n, Case: image + ": start of a further one", Value: seconds, Unit: "s"}
	if err := c.add(s); err != nil {
		return err
	}
	s.Case, s.Value, s.Unit = image+": memory of a further one", each, "MB"
	return c.add(s)
}

// further is the start of sandbox n, from 0, of those that share t's directory. It stays until it is told to end.
func (t *trial) further(n int) *trial {
	return &trial{dir: t.dir, ref: t.ref, img: t.img, bin: t.bin, n: n, stay: true, ready: make(chan struct{}), marks: map[string]float64{}, atReady: func() {}}
}

// own is the path of something that sandboxes of one directory do not share.
func (t *trial) own(name string) string {
	if t.n > 0 {
		name += strconv.Itoa(t.n)
	}
	return filepath.Join(t.dir, name)
}

// name is what the container is called.
func (t *trial) name() string { return filepath.Base(t.own("bench")) }

// sharedMemory is that of all descendants together, bytes; what several have is counted once (proc(5), smaps_rollup).
func sharedMemory() int64 {
	var sum int64
	for _, p := range descendants() {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
		if err != nil {
			continue // it has gone
		}
		for line := range strings.Lines(string(raw)) {
			if kb, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(kb), " kB"), 10, 64)
				sum += n << 10
			}
		}
	}
	return sum
}
