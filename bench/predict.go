package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/layer"
)

// predictCommand holds what is predicted of a start against what it reads.
func predictCommand() *cobra.Command {
	var bin, images string
	var misses bool
	cmd := &cobra.Command{
		Use:   "predict",
		Short: "Compare what is predicted of the first start of an image with what it reads",
		Long: "Start each image once, as eStargz on a host mount with runc, and hold the chunks that were predicted without a profile against those that\n" +
			"the start has read: how many of the predicted bytes were read, and how many of those read were predicted. As root.",
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
			fs, err := choose("form", "estargz", forms(), func(f form) string { return f.key })
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, predictLine, "image", "read", "MB", "predicted", "MB", "of these read", "of the read predicted")
			for _, w := range ws {
				img, err := s.image(cmd.Context(), w, fs[0])
				if err == nil {
					err = predictions(cmd.Context(), out, abs, img, misses)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", w.name, err)
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&bin, "bin", "bin", "the directory of msb-fs")
	f.StringVar(&images, "images", "python,redis,node,openjdk,postgresql,golang,scipy", "images, of the bench's own")
	f.BoolVar(&misses, "misses", false, "list the files that were read and not predicted, and the other way round")
	return cmd
}

const predictLine = "%-12s %6v %7v %10v %7v %14v %22v\n"

// predictions writes one line of the table.
func predictions(ctx context.Context, out io.Writer, bin string, img *image, list bool) error {
	ls, err := chooseLinks("1g")
	if err != nil {
		return err
	}
	run, err := replay(ctx, bin, img, ls[0], nil)
	if err != nil {
		return err
	}
	read, err := touches(run.profile)
	if err != nil {
		return err
	}
	tree, done, err := img.tree(ctx)
	if err != nil {
		return err
	}
	defer done()
	guess := tree.Predict(ctx, img.argv(), img.config.Env)
	both, missed, vain := compare(read, guess)
	size := func(profile []fs.Touch) (n float64) {
		for _, b := range tree.Cost(profile) {
			n += float64(b)
		}
		return n
	}
	percent := func(a, b float64) string { return fmt.Sprintf("%.0f %%", 100*a/max(b, 1)) }
	hit := size(both)
	fmt.Fprintf(out, predictLine, img.name, len(read), fmt.Sprintf("%.1f", size(read)/1e6), len(guess), fmt.Sprintf("%.1f", size(guess)/1e6),
		percent(hit, size(guess)), fmt.Sprintf("%s, %s of chunks", percent(hit, size(read)), percent(float64(len(both)), float64(len(read)))))
	for what, profile := range map[string][]fs.Touch{"missed": missed, "in vain": vain} {
		for _, t := range profile {
			if list {
				fmt.Fprintf(out, "    %s %s at %d, %.0f kB\n", what, tree.Path(t.ID), t.Offset, size([]fs.Touch{t})/1e3)
			}
		}
	}
	return nil
}

// compare sorts chunks by whether they were both read and guessed.
func compare(read, guess []fs.Touch) (both, missed, vain []fs.Touch) {
	type place struct {
		id  fs.ID
		off int64
	}
	guessed := map[place]bool{}
	for _, t := range guess {
		guessed[place{t.ID, t.Offset}] = true
	}
	for _, t := range read {
		if at := (place{t.ID, t.Offset}); guessed[at] {
			both = append(both, t)
			delete(guessed, at)
		} else {
			missed = append(missed, t)
		}
	}
	for _, t := range guess {
		if guessed[place{t.ID, t.Offset}] {
			vain = append(vain, t)
		}
	}
	return both, missed, vain
}

// touches is the first profile of those that a daemon has exported.
func touches(packed []byte) ([]fs.Touch, error) {
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	b, err := dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, err
	}
	var in struct {
		Profiles []struct {
			Touches []fs.Touch `json:"touches"`
		} `json:"profiles"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, err
	}
	if len(in.Profiles) == 0 {
		return nil, errors.New("the start has left no profile")
	}
	return in.Profiles[0].Touches, nil
}

// tree is the image's files, from its directory; what done closes.
func (i *image) tree(ctx context.Context) (t *fs.Tree, done func(), err error) {
	var closers []func()
	done = func() {
		for _, c := range slices.Backward(closers) {
			c()
		}
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	blob := func(digest string) string {
		return filepath.Join(i.layout, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	raw, err := os.ReadFile(blob(i.digest.String()))
	if err != nil {
		return nil, nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, nil, err
	}
	var layers []fs.Layer
	for _, d := range m.Layers {
		f, err := os.Open(blob(d.Digest.String()))
		if err != nil {
			return nil, nil, err
		}
		closers = append(closers, func() { f.Close() })
		l, err := layer.Open(ctx, layer.Descriptor{Digest: d.Digest.String(), MediaType: string(d.MediaType), Size: d.Size, Annotations: d.Annotations}, &fileBlob{f, d.Size}, layer.Options{})
		if err != nil {
			return nil, nil, err
		}
		closers = append(closers, func() { l.Close() })
		layers = append(layers, l)
	}
	if t, err = fs.New(ctx, layers, &chunkMap{m: map[[32]byte][]byte{}}, fs.Options{}); err != nil {
		return nil, nil, err
	}
	closers = append(closers, func() { t.Close() })
	<-t.Sealed()
	return t, done, nil
}

// fileBlob is a layer's blob in a file.
type fileBlob struct {
	f    *os.File
	size int64
}

func (b *fileBlob) Size() int64 { return b.size }

func (b *fileBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return b.f.ReadAt(p, off)
}

func (b *fileBlob) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(b.f, off, b.size-off)), nil
}

// chunkMap keeps chunks in memory; one goroutine uses it.
type chunkMap struct{ m map[[32]byte][]byte }

func (c *chunkMap) Has(k [32]byte) bool { return c.m[k] != nil }

func (c *chunkMap) ReadAt(ctx context.Context, k [32]byte, _ int64, p []byte, off int64, fill func(context.Context) ([]byte, error)) (int, error) {
	if c.m[k] == nil {
		b, err := fill(ctx)
		if err != nil {
			return 0, err
		}
		c.m[k] = b
	}
	return copy(p, c.m[k][min(off, int64(len(c.m[k]))):]), nil
}
