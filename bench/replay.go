package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

// replayCommand measures what start-up profiles are worth.
func replayCommand() *cobra.Command {
	var bin, images, formKeys, linkKeys string
	var runs int
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Time cold starts with and without a start-up profile, and count what they fetch",
		Long: "Time cold starts of images on a host mount with runc, with what an earlier start elsewhere has needed (its profile) and without, in turns;\n" +
			"and set the bytes that have come when the program is ready beside the compressed bytes of the chunks that it has read. As root.",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			abs, err := filepath.Abs(bin)
			if err != nil {
				return err
			}
			if err := adopt(); err != nil {
				return err
			}
			s, err := newStore(abs, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			ws, err := chooseWorkloads(images)
			if err != nil {
				return err
			}
			fs, err := choose("form", formKeys, forms(), func(f form) string { return f.key })
			if err != nil {
				return err
			}
			ls, err := chooseLinks(linkKeys)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, replayLine, "image", "form", "link", "without, s", "with, s", "ratio", "touched", "without", "x", "with", "x", "requests", "daemon")
			for _, w := range ws {
				for _, f := range fs {
					img, err := s.image(cmd.Context(), w, f)
					if err != nil {
						return err
					}
					for _, l := range ls {
						if err := replays(cmd.Context(), out, abs, img, l, runs); err != nil {
							return fmt.Errorf("%s, %s, %s: %w", w.name, f.key, l.name, err)
						}
					}
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&bin, "bin", "bin", "the directory of msb-fs and msb-launch")
	f.StringVar(&images, "images", "python", "images, of the bench's own")
	f.StringVar(&formKeys, "forms", "estargz", "forms of the images")
	f.StringVar(&linkKeys, "links", "100m,1g,far", "links: 100m, 1g, far")
	f.IntVar(&runs, "runs", 5, "runs of each")
	return cmd
}

// replayLine is a line of the table; it is printed as soon as it is known. Sizes are in MB.
const replayLine = "%-10s %-12s %-4s  %-18s %-18s %5s  %7s  %7s %5s  %7s %5s  %-10s %6s\n"

// replayRun is one start.
type replayRun struct {
	seconds        float64
	bytes, touched int64
	requests       int64
	rss            int64  // the daemon's, at most
	profile        []byte // what it has learned
}

// replays writes one line of the table.
func replays(ctx context.Context, out io.Writer, bin string, img *image, l link, runs int) error {
	var with, without []replayRun
	first, err := replay(ctx, bin, img, l, nil)
	if err != nil {
		return err
	}
	if len(first.profile) == 0 {
		return errors.New("the first start has left no profile")
	}
	for range runs {
		a, err := replay(ctx, bin, img, l, nil)
		if err != nil {
			return err
		}
		b, err := replay(ctx, bin, img, l, first.profile)
		if err != nil {
			return err
		}
		without, with = append(without, a), append(with, b)
	}
	a, b := seconds(without), seconds(with)
	fetchedA, fetchedB := middle(without, func(r replayRun) float64 { return float64(r.bytes) }), middle(with, func(r replayRun) float64 { return float64(r.bytes) })
	touched := middle(without, func(r replayRun) float64 { return float64(r.touched) })
	span := func(s summary) string { return fmt.Sprintf("%.2f (%.2f-%.2f)", s.Median, s.Min, s.Max) }
	megabytes := func(v float64) string { return fmt.Sprintf("%.1f", v/1e6) }
	ratio := func(v float64) string { return fmt.Sprintf("%.2f", v) }
	requests := func(r replayRun) float64 { return float64(r.requests) }
	rss := middle(slices.Concat(with, without), func(r replayRun) float64 { return float64(r.rss) })
	_, err = fmt.Fprintf(out, replayLine, img.name, img.form.key, l.key, span(a), span(b), ratio(b.Median/a.Median), megabytes(touched),
		megabytes(fetchedA), ratio(fetchedA/touched), megabytes(fetchedB), ratio(fetchedB/touched),
		fmt.Sprintf("%.0f, %.0f", middle(without, requests), middle(with, requests)), megabytes(rss))
	return err
}

func seconds(rs []replayRun) summary {
	var v []float64
	for _, r := range rs {
		v = append(v, r.seconds)
	}
	return summarize(v)
}

// middle is the median of one number of each run.
func middle(rs []replayRun, f func(replayRun) float64) float64 {
	var v []float64
	for _, r := range rs {
		v = append(v, f(r))
	}
	slices.Sort(v)
	return median(v)
}

// replay starts img once from nothing but a profile, which may be empty.
func replay(ctx context.Context, bin string, img *image, l link, profile []byte) (r replayRun, err error) {
	path := "/v1/profiles/" + img.digest.String()
	call := func(ctx context.Context, t *trial, method string, in, out any) error {
		client, ok := api.Running(ctx, api.Home(filepath.Join(t.dir, "home")))
		if !ok {
			return errors.New("no daemon answers")
		}
		defer client.Close()
		return client.Call(ctx, method, path, in, out)
	}
	sys := mountSystem()
	sys.prepare = func(ctx context.Context, t *trial) error {
		if err := prepareOurs(ctx, t); err != nil || profile == nil {
			return err
		}
		return call(ctx, t, "PUT", api.Profiles{Data: profile}, nil)
	}
	sys.complete = func(ctx context.Context, t *trial) error {
		var stats api.Stats
		if err := askOurs(ctx, t, &stats, "stats"); err != nil {
			return err
		}
		for _, m := range stats.Mounts {
			r.touched += m.Usage.BytesTouched
		}
		if err := completeOurs(ctx, t); err != nil {
			return err
		}
		var p api.Profiles
		err := call(ctx, t, "GET", nil, &p)
		r.profile = p.Data
		return err
	}
	rec, err := task{image: img, link: l, system: sys, complete: profile == nil, bin: bin}.measure(ctx)
	r.seconds, r.bytes, r.requests, r.rss = rec.Ready, rec.Bytes, rec.Requests, rec.RSS["msb-fs"]
	return r, err
}
