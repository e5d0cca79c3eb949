package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
)

//go:embed floors.json
var floorsFile []byte

// floor is how many times faster than a full pull a start must be, at least: about 0.6 of what was measured when it was written.
type floor struct {
	Image string  `json:"image"`
	Form  string  `json:"form"`
	Link  string  `json:"link"`
	Times float64 `json:"times"`
}

func quickCommand() *cobra.Command {
	var bin, out string
	cmd := &cobra.Command{
		Use:   "quick",
		Short: "Check in a few minutes that cold starts have not become slower",
		Long: "Time cold starts of two images on a host mount beside containerd's full pull (umoci's, without containerd), three runs of each, and\n" +
			"compare the ratios with those stored in floors.json. It takes less than 8 minutes on two cores once the images are made. As root.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := out
			if dir == "" {
				var err error
				if dir, err = os.MkdirTemp("", "msb-bench-quick-"); err != nil {
					return err
				}
				defer os.RemoveAll(dir)
			}
			p, err := quickPlan(bin, dir, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := p.execute(cmd, false); err != nil {
				return err
			}
			s, err := readResults(dir)
			if err != nil {
				return err
			}
			return s.checkFloors(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&bin, "bin", "bin", "the directory of msb-fs and msb-launch")
	cmd.Flags().StringVarP(&out, "out", "o", "", "keep the results in this directory")
	return cmd
}

// quickPlan is two images, as the table of contents, as an index beside them and as nobody has seen them, and a full pull.
func quickPlan(bin, dir string, said io.Writer) (*plan, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("run it as root: it mounts, and starts containers")
	}
	base := "containerd"
	for _, s := range systems() {
		if s.key == base && s.missing(bin) != "" {
			base = "umoci"
		}
	}
	p := &plan{runs: 3, budget: 7 * time.Minute, images: workloads(), said: said}
	var err error
	if p.systems, err = chooseSystems("mount,"+base, bin, said); err != nil {
		return nil, err
	}
	if p.store, err = newStore(bin, said); err != nil {
		return nil, err
	}
	images := []string{"python", "golang"}
	p.choices = []choice{
		{images, []string{"estargz", "gzip+index"}, []string{"1g"}, []string{"mount"}},
		{images, []string{"gzip"}, []string{"1g"}, []string{"mount", base}},
	}
	p.results, err = openResults(dir)
	return p, err
}

// checkFloors prints how each start compares with the full pull of the same image over the same link, and fails where it has become slower
// than the stored ratio allows.
func (s *set) checkFloors(w io.Writer) error {
	var floors []floor
	if err := json.Unmarshal(floorsFile, &floors); err != nil {
		return fmt.Errorf("read floors.json: %w", err)
	}
	_, groups := byCell(s.records)
	ready := func(c cell) float64 {
		if len(groups[c]) == 0 {
			return 0
		}
		return summarize(column(groups[c], func(r Record) float64 { return r.Ready })).Median
	}
	var errs []error
	for _, f := range floors {
		ours := ready(cell{f.Image, f.Form, f.Link, "mount"})
		full := ready(cell{f.Image, "gzip", f.Link, "containerd"})
		if full == 0 {
			full = ready(cell{f.Image, "gzip", f.Link, "umoci"})
		}
		if ours == 0 || full == 0 {
			errs = append(errs, fmt.Errorf("%s as %s over %s was not measured", f.Image, f.Form, f.Link))
			continue
		}
		fmt.Fprintf(w, "%-8s %-12s %-4s %5.1f x faster than a full pull, at least %.1f x\n", f.Image, f.Form, f.Link, full/ours, f.Times)
		if full/ours < f.Times {
			errs = append(errs, fmt.Errorf("%s as %s over %s: %.1f x faster than a full pull, it was more than %.1f x; see %s",
				f.Image, f.Form, f.Link, full/ours, f.Times, filepath.Join(s.dir, reportFile)))
		}
	}
	return errors.Join(errs...)
}
