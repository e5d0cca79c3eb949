package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
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
	var bin, only, out string
	cmd := &cobra.Command{
		Use:   "warm --dir DIR",
		Short: "Time commands over a mounted image that is all here, beside the same tree on the local disk",
		Long: "Time commands over a mounted image that is all here, beside the same tree on the local disk, in turns. DIR becomes the image. Where\n" +
			"it has them, a file \"big\" is read at random and in order, a git repository \"repo\" is asked for its status, and a directory\n" +
			"\"python\" of Python's library is imported from. \"first\" is with the kernel's caches dropped before each run. The table is of all\n" +
			"that the results have, from earlier calls too. As root.",
		Example: "  go run ./bench warm --dir /srv/tree\n" +
			"  go run ./bench warm --dir /srv/tree --work /srv/warm --cases 'find|tar'   # a part of it; /srv/warm keeps the mounted image for the next",
		Args: cli.Args(cobra.NoArgs),
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
			if w.cases, err = regexp.Compile(only); err != nil {
				return cli.Usagef("--cases: %v", err)
			}
			if w.results, err = openResults(out); err != nil {
				return err
			}
			return w.run(cmd.Context(), bin, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&w.dir, "dir", "", "the tree, on a local disk; what is kept for the run goes beside it")
	f.StringVar(&bin, "bin", "bin", "the directory of msb-fs")
	f.StringVar(&w.work, "work", "", "a directory beside the tree that keeps the image for a later call; empty: one for this call")
	f.StringVar(&only, "cases", "", "only those whose name, as the table has it, this regular expression matches")
	f.StringVar(&out, "out", defaultResults(), "the directory of results")
	f.IntVar(&w.runs, "runs", 5, "alternating runs of each command")
	f.BoolVar(&w.first, "first", true, "also with dropped caches")
	return cmd
}

// warmRun is what to measure.
type warmRun struct {
	dir     string
	work    string
	runs    int
	first   bool
	cases   *regexp.Regexp
	results *results
}

// warmPair is what the samples compare.
func warmPair() pair { return pair{set: "warm", ours: "msb-fs", base: "ext4"} }

// run makes an image of the tree, pulls and mounts it, and writes the table.
func (w warmRun) run(ctx context.Context, bin string, out io.Writer) (err error) {
	t := &trial{dir: w.work, bin: bin}
	if w.work == "" {
		if t.dir, err = os.MkdirTemp(filepath.Dir(w.dir), "mb-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(t.dir)) }()
	} else if t.dir, err = filepath.Abs(w.work); err != nil {
		return err
	}
	at := filepath.Join(t.dir, "root")
	if err := errors.Join(os.MkdirAll(at, 0o755), os.MkdirAll(filepath.Join(t.dir, "home"), 0o755)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wipeOurs(t)) }()
	if err := w.pull(ctx, t); err != nil {
		return err
	}
	if err := do(msb(ctx, t, "msb-fs", "mount", "--insecure", t.ref, at), nil); err != nil {
		return err
	}
	if err := w.compare(ctx, at, out); err != nil {
		return err
	}
	return warmPair().table(w.results, out)
}

// pull has the tree pulled, as t.ref. In a kept directory that has been done when there is a note of it.
func (w warmRun) pull(ctx context.Context, t *trial) error {
	note := filepath.Join(t.dir, "reference")
	if ref, err := os.ReadFile(note); err == nil {
		t.ref = string(ref)
		return nil
	}
	srv, ref, err := w.serve(t.dir)
	if err != nil {
		return err
	}
	defer srv.Close()
	t.ref = ref
	if err := do(msb(ctx, t, "msb-fs", "pull", "--insecure", "-q", ref), nil); err != nil {
		return err
	}
	return os.WriteFile(note, []byte(ref), 0o644)
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

// compare measures every command.
func (w warmRun) compare(ctx context.Context, ours string, out io.Writer) error {
	for _, c := range warmCommands(ctx) {
		if _, err := os.Stat(filepath.Join(w.dir, c.needs)); err != nil {
			continue
		}
		if _, err := exec.LookPath(c.program); c.program != "" && err != nil {
			fmt.Fprintf(out, "%s is not measured: it is not installed\n", c.program)
			continue
		}
		for _, drop := range []bool{false, true} {
			caches := "warm"
			if drop {
				caches = "first touch"
			}
			if drop && !w.first || !w.cases.MatchString(c.name+", "+caches) {
				continue
			}
			a, b, err := w.alternate(ctx, drop, func() error { return c.run(ctx, ours) }, func() error { return c.run(ctx, w.dir) })
			if err == nil {
				err = warmPair().add(w.results, c.name, caches, a, b)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return nil
}

// alternate runs a and b in turns. The first warm run of each is not counted: it fills the caches.
func (w warmRun) alternate(ctx context.Context, drop bool, a, b func() error) (ours, base []float64, err error) {
	var times [2][]float64
	for i := range w.runs + 1 {
		for k, f := range []func() error{a, b} {
			if drop {
				unix.Sync()
				if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
					return nil, nil, err
				}
			}
			start := time.Now()
			if err := errors.Join(f(), ctx.Err()); err != nil {
				return nil, nil, err
			}
			if i > 0 {
				times[k] = append(times[k], time.Since(start).Seconds())
			}
		}
	}
	return times[0], times[1], nil
}

// warmCommandOf is something to do with a tree.
type warmCommandOf struct {
	name    string
	needs   string // in the tree
	program string // that must be installed; "" is one that always is
	run     func(ctx context.Context, dir string) error
}

func warmCommands(ctx context.Context) []warmCommandOf {
	sh := func(script string) func(context.Context, string) error {
		return func(ctx context.Context, dir string) error {
			cmd := exec.CommandContext(ctx, "sh", "-c", script)
			cmd.Dir = dir
			return do(cmd, nil)
		}
	}
	const imports = ` -B -I -S -W ignore -c 'import sys; sys.path.insert(0, "python"); import asyncio, email.mime.multipart, xml.dom.minidom, http.server, unittest, multiprocessing, sqlite3, ctypes, concurrent.futures'`
	// Each tree's index is kept elsewhere, so that it has the inode numbers and times of that tree.
	const status = `cd repo; export GIT_INDEX_FILE="${TMPDIR:-/tmp}/index-$(pwd | tr / _)"; test -e "$GIT_INDEX_FILE" || cp .git/index "$GIT_INDEX_FILE"; git -c safe.directory='*' status >/dev/null`
	return []warmCommandOf{
		{name: "find -printf %s", run: sh(`find . -printf %s >/dev/null`)},
		{name: "tar c", run: sh(`tar c . | cat >/dev/null`)},
		{name: "grep -r", run: sh(`grep -r nothinglikethis . ; true`)},
		{name: "rg", program: "rg", run: sh(`rg nothinglikethis . ; true`)},
		{name: "du", run: sh(`du -s . >/dev/null`)},
		{name: "ls -lR", run: sh(`ls -lR . >/dev/null`)},
		{name: "python3 -c 'import ...'", needs: "python", program: "python3", run: sh(pythonProgram(ctx) + imports)},
		{name: "git status", needs: "repo", program: "git", run: sh(status)},
		{name: "4 threads, random 4 KiB", needs: "big", run: randomReads},
		{name: "in order", needs: "big", run: sh(`cat big >/dev/null`)},
	}
}

// pythonProgram is what runs Python: what is called python3 may be a shell script that looks for it, which takes longer
// than what is measured.
func pythonProgram(ctx context.Context) string {
	path, err := exec.CommandContext(ctx, "python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		return "python3"
	}
	return strings.TrimSpace(string(path))
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
