package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

const (
	bulkFiles = 500
	bulkSmall = 20_000 // bytes of each
)

// bulkCommand measures whether what is read in order comes at the link's speed.
func bulkCommand() *cobra.Command {
	var bin, linkKeys string
	var megabytes int
	cmd := &cobra.Command{
		Use:   "bulk",
		Short: "Time the first reading of one large file and of 500 small ones",
		Long: "Mount an image of one large file that does not compress and 500 small ones, read the large one from its start to its end, then all small ones in\n" +
			"order, and set the time beside the wire's. As root.",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			abs, err := filepath.Abs(bin)
			if err != nil {
				return err
			}
			ls, err := chooseLinks(linkKeys)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%-13s %-5s %9s %9s %6s %16s %9s\n", "form", "link", "large, s", "wire, s", "ratio", "500 small, s", "wire, s")
			for _, form := range []testimage.Form{testimage.EStargz, testimage.ZstdChunked, testimage.Gzip} {
				img, err := bulkImage(form, megabytes<<20)
				if err != nil {
					return err
				}
				for _, l := range ls {
					if err := bulk(cmd.Context(), cmd.OutOrStdout(), abs, string(form), img, l, int64(megabytes)<<20); err != nil {
						return fmt.Errorf("%s, %s: %w", form, l.key, err)
					}
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&bin, "bin", "bin", "the directory of msb-fs")
	f.StringVar(&linkKeys, "links", "100m,1g,far", "links: 100m, 1g, far")
	f.IntVar(&megabytes, "size", 128, "MiB of the large file")
	return cmd
}

// bulkImage is the layer that is read.
func bulkImage(form testimage.Form, size int) (*testimage.Layer, error) {
	random := rand.NewChaCha8([32]byte{})
	text := make([]byte, size)
	random.Read(text)
	files := []testimage.Entry{testimage.File("large", string(text))}
	for i := range bulkFiles {
		files = append(files, testimage.File(fmt.Sprintf("small/%03d", i), string(text[i*bulkSmall%(size-bulkSmall):][:bulkSmall])))
	}
	return testimage.NewLayer(form, files...)
}

// bulk writes one line of the table.
func bulk(ctx context.Context, out io.Writer, bin, form string, l *testimage.Layer, over link, size int64) (err error) {
	img, err := testimage.Image(testimage.Config{}, l)
	if err != nil {
		return err
	}
	srv, err := registry.Start(registry.Options{Link: over.open()})
	if err != nil {
		return err
	}
	defer srv.Close()
	if _, err := srv.AddImage("bench/bulk:latest", img); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mb-")
	if err != nil {
		return err
	}
	t := &trial{dir: dir, bin: bin}
	root := filepath.Join(dir, "root")
	defer func() {
		err = errors.Join(err, wipeOurs(t), os.RemoveAll(dir))
	}()
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := do(msb(ctx, t, "msb-fs", "mount", "--insecure", srv.Host()+"/bench/bulk:latest", root), nil); err != nil {
		return err
	}
	read := func(command string) (float64, error) {
		begun := time.Now()
		err := do(exec.CommandContext(ctx, "sh", "-c", command, "sh", root), nil)
		return time.Since(begun).Seconds(), err
	}
	large, err := read(`cat "$1/large" >/dev/null`)
	if err != nil {
		return err
	}
	small, err := read(`cat "$1"/small/* >/dev/null`)
	if err != nil {
		return err
	}
	wire := over.wire(size).Seconds()
	fmt.Fprintf(out, "%-13s %-5s %9.2f %9.2f %6.2f %16.2f %9.2f\n", form, over.key, large, wire, large/wire, small, over.wire(bulkFiles*bulkSmall).Seconds())
	return nil
}
