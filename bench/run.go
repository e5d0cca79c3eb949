package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/cli"
)

// runFlags are the options of bench run.
type runFlags struct {
	bin, out                      string
	images, forms, links, systems string
	runs                          int
	budget                        time.Duration
	trace                         bool

	ref      string
	insecure bool
	ready    string
}

func runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [OPTIONS] [-- COMMAND [ARG...]]",
		Short: "Time cold starts",
		Long: "Time cold starts of images, ours beside what people use today. Without a choice it is the full run of the report, about\n" +
			"25 minutes on two cores. What a results directory has already is not measured again, so the same command goes on after an\n" +
			"interruption. As root.\n\n" +
			"--image takes any other image: it is copied once, with Docker's or podman's credentials, and then served over the chosen links as it\n" +
			"is (and in other forms, with --forms). It is ready at the line that begins with --ready, or at its first output.",
		Example: "  go run ./bench run\n" +
			"  go run ./bench run --images python --forms estargz,gzip --links 100m --systems mount,containerd\n" +
			"  go run ./bench run --image registry.example.com/team/app:1 --links 1g -- app --version",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && f.ref == "" {
				return cli.Usagef("a command needs --image")
			}
			if f.runs < 1 {
				return cli.Usagef("--runs %d: at least 1", f.runs)
			}
			p, err := f.plan(args)
			if err != nil {
				return err
			}
			return p.execute(cmd, f.trace)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.bin, "bin", "bin", "the directory of msb-fs and msb-launch")
	flags.StringVarP(&f.out, "out", "o", defaultResults(), "the directory of results")
	flags.StringVar(&f.images, "images", "", "images, of the bench's own")
	flags.StringVar(&f.forms, "forms", "", "forms of the images: gzip, zstd, estargz, zstd-chunked, gzip+index, gzip+soci, as-is")
	flags.StringVar(&f.links, "links", "", "links: 100m, 1g, far")
	flags.StringVar(&f.systems, "systems", "", "systems: mount, vm, containerd, podman, umoci, stargz, soci, nydus (default all there are)")
	flags.IntVar(&f.runs, "runs", 5, "runs of each")
	flags.DurationVar(&f.budget, "for", 0, "begin no start later than this")
	flags.BoolVar(&f.trace, "trace", false, "start what was measured on a host mount again, with eBPF watching, and keep what it saw")
	flags.StringVar(&f.ref, "image", "", "another image, of any registry")
	flags.BoolVar(&f.insecure, "insecure", false, "of --image: plain HTTP, or a certificate that nobody has signed")
	flags.StringVar(&f.ready, "ready", "", "of --image: what the line begins with that the program prints when it is ready")
	return cmd
}

// plan is what the options ask for.
func (f runFlags) plan(argv []string) (*plan, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("run it as root: it mounts, and starts containers")
	}
	p := &plan{runs: f.runs, budget: f.budget, images: workloads(), said: os.Stderr}
	var err error
	if p.systems, err = chooseSystems(f.systems, f.bin, os.Stderr); err != nil {
		return nil, err
	}
	if p.store, err = newStore(f.bin, os.Stderr); err != nil {
		return nil, err
	}
	c := choice{}
	for _, s := range p.systems {
		c.systems = append(c.systems, s.key)
	}
	split := func(s, otherwise string) []string {
		if s == "" {
			s = otherwise
		}
		return strings.Split(s, ",")
	}
	c.links = split(f.links, "100m,1g")
	switch {
	case f.ref != "":
		src := &source{ref: f.ref, insecure: f.insecure}
		if len(argv) > 0 {
			src.argv = argv
		}
		w := src.workload(f.ready)
		p.images = []workload{w}
		c.images, c.forms = []string{w.name}, split(f.forms, string(asIs))
	case f.images != "" || f.forms != "" || f.links != "":
		ws, err := chooseWorkloads(f.images)
		if err != nil {
			return nil, err
		}
		for _, w := range ws {
			c.images = append(c.images, w.name)
		}
		c.forms = split(f.forms, "gzip,estargz,gzip+index")
	default:
		p.choices = standard()
	}
	if p.choices == nil {
		p.choices = []choice{c}
	}
	if p.results, err = openResults(f.out); err != nil {
		return nil, err
	}
	return p, nil
}

// execute measures, and writes the report.
func (p *plan) execute(cmd *cobra.Command, trace bool) error {
	if err := adopt(); err != nil {
		return err
	}
	if err := p.results.addMachine(); err != nil {
		return err
	}
	failed, err := p.run(cmd.Context())
	if err != nil {
		return err
	}
	if trace {
		if err := p.trace(cmd.Context()); err != nil {
			return err
		}
	}
	set, err := readResults(p.results.dir)
	if err != nil {
		return err
	}
	if err := writeTable(cmd.OutOrStdout(), set); err != nil {
		return err
	}
	page, err := set.writeReport()
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "the report is", page)
	if failed > 0 {
		return fmt.Errorf("%d starts failed; see %s/%s", failed, p.results.dir, errorsFile)
	}
	return nil
}
