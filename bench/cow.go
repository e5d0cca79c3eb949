package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// cowBench compares writable mounts of one image: ours, fuse-overlayfs and the kernel's overlayfs, on a file system of
// their own that is made anew. (ext4 looks long for inode numbers when many files were removed in the last minute, which
// would be charged to whoever comes next.)
type cowBench struct {
	bin  string
	runs int
	out  io.Writer

	dir   string // where the file system is mounted
	ref   string
	took  map[string]map[string][]time.Duration // by workload and system
	order []string                              // of workloads
}

func cowCommand() *cobra.Command {
	var b cowBench
	cmd := &cobra.Command{
		Use:   "cow",
		Short: "Time writing to a mount of an image beside fuse-overlayfs and overlayfs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.OutOrStdout()
			return b.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&b.bin, "bin", "bin", "`directory` of msb-fs")
	cmd.Flags().IntVar(&b.runs, "runs", 3, "runs of each workload on each system")
	return cmd
}

const cowBig = 256 << 20 // size of the image's large file

// cowStack is Debian with Python, and a large file.
func cowStack() testimage.Stack {
	s := testimage.Python()
	s.Name = "cow"
	s.App = func() []testimage.Entry {
		return []testimage.Entry{testimage.Stream("big", cowBig, io.LimitReader(rand.NewChaCha8([32]byte{1}), cowBig))}
	}
	return s
}

func (b *cowBench) run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("run it as root: it mounts")
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	cache, err := testimage.CacheDir()
	if err != nil {
		return err
	}
	layout, err := cowStack().Layout(ctx, cache, testimage.Gzip, os.Stderr)
	if err != nil {
		return err
	}
	srv, err := registry.Start(registry.Options{})
	if err != nil {
		return err
	}
	defer srv.Close()
	if _, err := srv.AddLayout("bench/cow", layout); err != nil {
		return err
	}
	b.ref = srv.Host() + "/bench/cow"
	free, err := b.fileSystem(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, free()) }()
	if err := b.command(ctx, "umoci", "unpack", "--image", layout+":latest", b.path("bundle")); err != nil {
		return err
	}
	defer b.command(context.WithoutCancel(ctx), filepath.Join(b.bin, "msb-fs"), "stop")
	if err := b.command(ctx, filepath.Join(b.bin, "msb-fs"), "pull", "--insecure", b.ref); err != nil {
		return err
	}
	if err := b.sources(ctx); err != nil {
		return err
	}
	b.took = make(map[string]map[string][]time.Duration)
	for n := range b.runs {
		if err := b.round(ctx, n); err != nil {
			return err
		}
	}
	return b.report()
}

func (b *cowBench) path(name ...string) string {
	return filepath.Join(append([]string{b.dir}, name...)...)
}

// fileSystem makes an ext4 in a file and mounts it.
func (b *cowBench) fileSystem(ctx context.Context) (free func() error, err error) {
	work, err := os.MkdirTemp("", "msb-cow-")
	if err != nil {
		return nil, err
	}
	remove := func() error { return os.RemoveAll(work) }
	disk := filepath.Join(work, "disk")
	b.dir = filepath.Join(work, "fs")
	err = os.Mkdir(b.dir, 0o755)
	if err == nil {
		err = os.WriteFile(disk, nil, 0o600)
	}
	if err == nil {
		err = os.Truncate(disk, 24<<30)
	}
	if err == nil {
		err = b.command(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-N", "1000000", disk)
	}
	if err == nil {
		err = b.command(ctx, "mount", "-o", "loop", disk, b.dir)
	}
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	return func() error {
		err := b.command(context.Background(), "umount", b.dir)
		for i := 0; err != nil && i < 100; i++ { // the daemon has been told to end, and may not have
			time.Sleep(100 * time.Millisecond)
			err = b.command(context.Background(), "umount", b.dir)
		}
		return errors.Join(err, remove())
	}, nil
}

// command runs a program with a home of ours.
func (b *cowBench) command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "MSB_HOME="+b.path("home"), "GIT_CONFIG_NOSYSTEM=1", "HOME="+b.dir)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %.500s", filepath.Base(name), err, said.Bytes())
	}
	return nil
}

// cowSystem mounts the image writable at root/mnt, and what it needs beside it.
type cowSystem struct {
	name   string
	mount  func(ctx context.Context, b *cowBench, root string) error
	umount func(ctx context.Context, b *cowBench, mnt string) error
}

func cowSystems() []cowSystem {
	plain := func(ctx context.Context, b *cowBench, mnt string) error { return b.command(ctx, "umount", mnt) }
	options := func(b *cowBench, root string) string {
		return fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", b.path("bundle", "rootfs"), root, root)
	}
	return []cowSystem{
		{"msb-fs", func(ctx context.Context, b *cowBench, root string) error {
			return b.command(ctx, filepath.Join(b.bin, "msb-fs"), "mount", "--insecure", "--upper", root+"/upper", b.ref, root+"/mnt")
		}, func(ctx context.Context, b *cowBench, mnt string) error {
			return b.command(ctx, filepath.Join(b.bin, "msb-fs"), "umount", mnt)
		}},
		{"fuse-overlayfs", func(ctx context.Context, b *cowBench, root string) error {
			return b.command(ctx, "fuse-overlayfs", "-o", options(b, root), root+"/mnt")
		}, plain},
		{"overlayfs", func(ctx context.Context, b *cowBench, root string) error {
			return b.command(ctx, "mount", "-t", "overlay", "overlay", "-o", options(b, root), root+"/mnt")
		}, plain},
		{"no overlay", func(context.Context, *cowBench, string) error { return nil },
			func(context.Context, *cowBench, string) error { return nil }},
	}
}

// round runs every workload once on every system, each on a fresh upper; nobody is always first.
func (b *cowBench) round(ctx context.Context, n int) (err error) {
	systems := cowSystems()
	roots := make(map[string]string)
	for _, s := range systems {
		if _, err := exec.LookPath(s.name); s.name == "fuse-overlayfs" && err != nil {
			fmt.Fprintln(os.Stderr, "fuse-overlayfs is not measured: it is not installed")
			continue
		}
		root := b.path(fmt.Sprintf("%s-%d", s.name[:2], n))
		for _, d := range []string{"upper", "work", "mnt/tmp"} {
			if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
				return err
			}
		}
		if s.name != "no overlay" {
			if err := os.Remove(filepath.Join(root, "mnt/tmp")); err != nil {
				return err
			}
		}
		if err := s.mount(ctx, b, root); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.umount(context.WithoutCancel(ctx), b, root+"/mnt")) }()
		if err := b.command(ctx, "cp", b.path("large.deb"), root+"/mnt/tmp/"); err != nil {
			return err
		}
		roots[s.name] = root
	}
	for _, w := range b.workloads() {
		for i := range systems {
			s := systems[(i+n)%len(systems)]
			root := roots[s.name]
			if root == "" || s.name == "no overlay" && !w.plain {
				continue
			}
			unix.Sync() // of what went before
			start := time.Now()
			if err := w.run(ctx, root+"/mnt"); err != nil {
				return fmt.Errorf("%s on %s: %w", w.name, s.name, err)
			}
			b.note(w.name, s.name, time.Since(start))
		}
	}
	return nil
}

func (b *cowBench) note(workload, system string, d time.Duration) {
	if b.took[workload] == nil {
		b.took[workload] = make(map[string][]time.Duration)
		b.order = append(b.order, workload)
	}
	b.took[workload][system] = append(b.took[workload][system], d)
	fmt.Fprintf(os.Stderr, "%-44s %-15s %8.3f s\n", workload, system, d.Seconds())
}

// report prints medians with their spread, and the ratios that count.
func (b *cowBench) report() error {
	p := printer{w: b.out}
	p.line("| workload | msb-fs, s | fuse-overlayfs, s | overlayfs, s | no overlay, s | fuse-overlayfs / msb-fs | msb-fs / overlayfs |")
	p.line("|---|---|---|---|---|---|---|")
	var faster, slower float64
	for _, w := range b.order {
		t := b.took[w]
		f, s := ratioOf(t["fuse-overlayfs"], t["msb-fs"]), ratioOf(t["msb-fs"], t["overlayfs"])
		faster += math.Log(f)
		slower += math.Log(s)
		p.line("| %s | %s | %s | %s | %s | %.2f | %.2f |", w, spreadOf(t["msb-fs"]), spreadOf(t["fuse-overlayfs"]), spreadOf(t["overlayfs"]), spreadOf(t["no overlay"]), f, s)
	}
	n := float64(len(b.order))
	p.line("| geometric mean | | | | | %.2f | %.2f |", math.Exp(faster/n), math.Exp(slower/n))
	return p.err
}

func medianOf(ds []time.Duration) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	ds = slices.Sorted(slices.Values(ds))
	return ds[len(ds)/2]
}

func ratioOf(a, b []time.Duration) float64 {
	if len(a) == 0 || len(b) == 0 {
		return 1
	}
	return float64(medianOf(a)) / float64(medianOf(b))
}

func spreadOf(ds []time.Duration) string {
	if len(ds) == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f (%.3f to %.3f)", medianOf(ds).Seconds(), slices.Min(ds).Seconds(), slices.Max(ds).Seconds())
}
