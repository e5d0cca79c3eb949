package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// warmCommand sets a mounted image whose bytes are all here beside the same tree on the local file system.
func warmCommand() *cobra.Command {
	w := warmRun{}
	var bin string
	cmd := &cobra.Command{
		Use:   "warm --dir DIR",
		Short: "Time commands over a mounted image that is all here, beside the same tree on the local disk",
		Long: "Time commands over a mounted image that is all here, beside the same tree on the local disk, in turns. DIR becomes the image. Where\n" +
			"it has them, a file \"big\" is read at random and in order, a git repository \"repo\" is asked for its status, and a directory\n" +
			"\"python\" of Python's library is imported from. \"first\" is with the kernel's caches dropped before each run. As root.",
		Example: "  go run ./bench warm --dir /srv/tree",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if w.dir == "" {
				return cli.Usagef("--dir is missing")
			}
			if w.dir, err = filepath.EvalSymlinks(w.dir); err != nil {
				return err
			}
			if bin, err = filepath.Abs(bin); err != nil {
				return err
			}
			return w.run(cmd.Context(), bin, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&w.dir, "dir", "", "the tree, on a local disk; what is kept for the run goes beside it")
	f.StringVar(&bin, "bin", "bin", "the directory of msb-fs")
	f.IntVar(&w.runs, "runs", 5, "alternating runs of each command")
	f.BoolVar(&w.first, "first", true, "also with dropped caches")
	return cmd
}

// warmRun is what to measure.
type warmRun struct {
	dir   string
	runs  int
	first bool
}

// run makes an image of the tree, pulls and mounts it, and writes the table.
func (w warmRun) run(ctx context.Context, bin string, out io.Writer) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(w.dir), "mb-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	srv, ref, err := w.serve(work)
	if err != nil {
		return err
	}
	defer srv.Close()
	t := &trial{dir: work, ref: ref, bin: bin}
	at := filepath.Join(work, "root")
	if err := errors.Join(os.Mkdir(at, 0o755), os.Mkdir(filepath.Join(work, "home"), 0o755)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wipeOurs(t)) }()
	if err := do(msb(ctx, t, "msb-fs", "pull", "--insecure", "-q", ref), nil); err != nil {
		return err
	}
	if err := do(msb(ctx, t, "msb-fs", "mount", "--insecure", ref, at), nil); err != nil {
		return err
	}
	return w.compare(ctx, at, out)
}

// serve makes an image of the tree and serves it.
func (w warmRun) serve(work string) (*registry.Server, string, error) {
	tar := filepath.Join(work, "tree.tar")
	if err := do(exec.Command("tar", "-C", w.dir, "--format=posix", "-cf", tar, "."), nil); err != nil {
		return nil, "", err
	}
	l, err := testimage.FileLayer(testimage.Tar, tar, work)
	if err = errors.Join(err, os.Remove(tar)); err != nil {
		return nil, "", err
	}
	img, err := testimage.Image(testimage.Config{}, l)
	if err != nil {
		return nil, "", err
	}
	srv, err := registry.Start(registry.Options{})
	if err != nil {
		return nil, "", err
	}
	if _, err := srv.AddImage("bench/tree", img); err != nil {
		return nil, "", errors.Join(err, srv.Close())
	}
	return srv, srv.Host() + "/bench/tree", nil
}

// compare writes a line for each command.
func (w warmRun) compare(ctx context.Context, ours string, out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "command\tcaches\tours, s\tlocal, s\tours / local")
	product, n := 0.0, 0
	for _, c := range warmCommands() {
		if _, err := os.Stat(filepath.Join(w.dir, c.needs)); err != nil {
			continue
		}
		for _, drop := range []bool{false, true} {
			if drop && !w.first {
				continue
			}
			a, b, err := w.alternate(ctx, drop, func() error { return c.run(ctx, ours) }, func() error { return c.run(ctx, w.dir) })
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			caches := "warm"
			if drop {
				caches = "dropped"
			} else {
				product, n = product+math.Log(a.Median/b.Median), n+1
			}
			fmt.Fprintf(table, "%s\t%s\t%.3f (%.3f-%.3f)\t%.3f (%.3f-%.3f)\t%.2f\n", c.name, caches, a.Median, a.Min, a.Max, b.Median, b.Min, b.Max, a.Median/b.Median)
		}
	}
	if n > 0 {
		fmt.Fprintf(table, "geometric mean\twarm\t\t\t%.2f\n", math.Exp(product/float64(n)))
	}
	return table.Flush()
}

// alternate runs a and b in turns. The first warm run of each is not counted: it fills the caches.
func (w warmRun) alternate(ctx context.Context, drop bool, a, b func() error) (summary, summary, error) {
	var times [2][]float64
	for i := range w.runs + 1 {
		for k, f := range []func() error{a, b} {
			if drop {
				unix.Sync()
				if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
					return summary{}, summary{}, err
				}
			}
			start := time.Now()
			if err := errors.Join(f(), ctx.Err()); err != nil {
				return summary{}, summary{}, err
			}
			if i > 0 {
				times[k] = append(times[k], time.Since(start).Seconds())
			}
		}
	}
	return summarize(times[0]), summarize(times[1]), nil
}

// warmCommandOf is something to do with a tree.
type warmCommandOf struct {
	name  string
	needs string // in the tree
	run   func(ctx context.Context, dir string) error
}

func warmCommands() []warmCommandOf {
	sh := func(script string) func(context.Context, string) error {
		return func(ctx context.Context, dir string) error {
			cmd := exec.CommandContext(ctx, "sh", "-c", script)
			cmd.Dir = dir
			return do(cmd, nil)
		}
	}
	const imports = `python3 -B -I -c 'import sys; sys.path.insert(0, "python"); import asyncio, email.mime.multipart, xml.dom.minidom, http.server, unittest, multiprocessing, sqlite3, ctypes, concurrent.futures, distutils.core' 2>/dev/null; true`
	// Each tree's index is kept elsewhere, so that it has the inode numbers and times of that tree.
	const status = `cd repo; export GIT_INDEX_FILE="${TMPDIR:-/tmp}/index-$(pwd | tr / _)"; test -e "$GIT_INDEX_FILE" || cp .git/index "$GIT_INDEX_FILE"; git -c safe.directory='*' status >/dev/null`
	return []warmCommandOf{
		{"find -printf %s", "", sh(`find . -printf %s >/dev/null`)},
		{"tar c", "", sh(`tar c . | cat >/dev/null`)},
		{"grep -r", "", sh(`grep -r nothinglikethis . ; true`)},
		{"du", "", sh(`du -s . >/dev/null`)},
		{"ls -lR", "", sh(`ls -lR . >/dev/null`)},
		{"python3 -c 'import ...'", "python", sh(imports)},
		{"git status", "repo", sh(status)},
		{"4 threads, random 4 KiB", "big", randomReads},
		{"in order", "big", sh(`cat big >/dev/null`)},
	}
}

// randomReads reads 4 KiB at random places of the big file from four threads.
func randomReads(ctx context.Context, dir string) error {
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for w := range errs {
		wg.Go(func() { errs[w] = randomReader(ctx, filepath.Join(dir, "big"), uint64(w+1)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func randomReader(ctx context.Context, path string, seed uint64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
	p, pages := make([]byte, 4096), uint64(max(fi.Size()/4096, 1))
	for range 20000 {
		if err := ctx.Err(); err != nil {
			return err
		}
		seed = seed*6364136223846793005 + 1442695040888963407
		if _, err := f.ReadAt(p, int64(seed>>33%pages)*4096); err != nil {
			return err
		}
	}
	return nil
}
