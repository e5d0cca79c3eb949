// Command demo shows what the project is for: a Python program runs in a microVM whose image nobody has pulled, over a
// link of 100 Mbit/s and 20 ms, once from an eStargz image (lazy) and once from the same image as plain gzip (streamed);
// then again with everything local. `make demo` runs it.
//
// With -image it does the same with an image of a real registry, over whatever link there is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	image, command string
	mbit           float64
	rtt            time.Duration
	bin            string
	forms          string
}

func run(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.StringVar(&o.image, "image", "", "an `image` of a real registry instead of the one made here")
	f.StringVar(&o.command, "command", "", "a shell `command` to run in it instead of its own")
	f.Float64Var(&o.mbit, "mbit", 100, "bandwidth of the link to the registry made here, `Mbit/s`")
	f.DurationVar(&o.rtt, "rtt", 20*time.Millisecond, "round-trip time of that link")
	f.StringVar(&o.bin, "bin", "bin", "the `directory` of msb-fs and msb-launch")
	f.StringVar(&o.forms, "forms", "estargz,gzip", "the `forms` of the image made here, in order")
	if err := f.Parse(args); err != nil {
		return err
	}
	var sum []result
	var err error
	if o.image != "" {
		sum, err = real(ctx, o)
	} else {
		sum, err = embedded(ctx, o)
	}
	if err != nil {
		return err
	}
	printSummary(os.Stdout, sum)
	return nil
}

// real runs an image of a registry that somebody else has.
func real(ctx context.Context, o options) ([]result, error) {
	s := trial{o: o, title: o.image, ref: o.image}
	r, err := s.run(ctx)
	return []result{r}, err
}

// embedded builds the image, serves it over the link, and runs it in each form.
func embedded(ctx context.Context, o options) ([]result, error) {
	dir, err := testimage.CacheDir()
	if err != nil {
		return nil, err
	}
	link := registry.NewLink(int64(o.mbit*1e6/8), o.rtt)
	srv, err := registry.Start(registry.Options{Link: link})
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	var trials []trial
	for _, form := range strings.Split(o.forms, ",") {
		layout, err := testimage.Python().Layout(ctx, dir, testimage.Form(form), os.Stderr)
		if err != nil {
			return nil, err
		}
		name := "demo/python:" + form
		if _, err := srv.AddLayout(name, layout); err != nil {
			return nil, err
		}
		trials = append(trials, trial{
			o: o, title: "python image as " + form, ref: srv.Host() + "/" + name, insecure: true, link: link,
		})
	}
	fmt.Printf("registry on %s behind %.0f Mbit/s and %v\n", srv.Host(), o.mbit, o.rtt)
	var sum []result
	for _, t := range trials {
		r, err := t.run(ctx)
		if err != nil {
			return sum, err
		}
		sum = append(sum, r)
	}
	return sum, nil
}

// tempHome is an empty home. Its path is short: sockets live in it.
func tempHome() (dir string, remove func() error, err error) {
	dir, err = os.MkdirTemp("", "msb-demo-")
	if err != nil {
		return "", nil, err
	}
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

// binary is the absolute path of one of the project's programs.
func (o options) binary(name string) (string, error) {
	p, err := filepath.Abs(filepath.Join(o.bin, name))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(p); err != nil {
		return "", errors.New(p + " is not there; run make build")
	}
	return p, nil
}
