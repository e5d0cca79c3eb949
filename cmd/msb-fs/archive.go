package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

func (a *app) loadCmd() *cobra.Command {
	var out cli.Output
	var req api.LoadRequest
	cmd := &cobra.Command{
		Use:   "load [OPTIONS] -i FILE",
		Short: "Take the images of an OCI image layout or docker archive into the store; no registry is needed to use them",
		Long: "Take the images of an archive into the store: an OCI image layout, as a directory or a tar of one, or what docker save writes;\n" +
			"a tar may be compressed with gzip or zstd. Prints the images' references. What an archive calls by a tag only is named after its file.",
		Example: "  msb-fs load -i python.tar\n  msb-fs load -i ./layout --tag team/app:2",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Path == "" {
				return cli.Usagef("load needs -i FILE")
			}
			path, err := filepath.Abs(req.Path)
			if err != nil {
				return err
			}
			req.Path = path
			loaded := []api.Image{}
			err = a.withDaemon(cmd, func(client *api.Client) error {
				return client.Stream(cmd.Context(), "POST", "/v1/load", req, func(e api.Event) error {
					if e.Name == api.EventLoaded && e.Image != nil {
						e.Image.Config = nil
						loaded = append(loaded, *e.Image)
					}
					return nil
				})
			})
			if len(loaded) == 0 && err != nil {
				return err
			}
			return errors.Join(err, out.Print(cmd.OutOrStdout(), loaded, func(w io.Writer) error {
				for _, img := range loaded {
					fmt.Fprintln(w, img.Reference)
				}
				return nil
			}))
		},
	}
	out.Register(cmd.Flags())
	cmd.Flags().StringVarP(&req.Path, "input", "i", "", "archive to read: a file or a directory")
	cmd.Flags().StringVarP(&req.Name, "tag", "t", "", "what to call the archive's image")
	cmd.Flags().StringVar(&req.Platform, "platform", "", "os/arch[/variant] to choose (default the host's)")
	return cmd
}

func (a *app) saveCmd() *cobra.Command {
	var registry cli.Registry
	var req api.SaveRequest
	var file string
	cmd := &cobra.Command{
		Use:   "save [OPTIONS] -o FILE IMAGE",
		Short: "Write an image to a file: an OCI image layout or a docker archive",
		Long: "Write an image to a file, which is there only once it is whole: a tar of an OCI image layout, or with --format docker-archive what\n" +
			"docker load takes. Where FILE is a directory, or ends with a slash, it becomes an OCI image layout, beside the images that it holds.",
		Example: "  msb-fs save -o python.tar python:3.12\n  msb-fs save -o ./layout/ python:3.12\n  msb-fs save --format docker-archive -o python.tar python:3.12",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return cli.Usagef("save needs -o FILE")
			}
			if req.Format == "" {
				req.Format = api.FormatOCI
				if strings.HasSuffix(file, "/") || isDir(file) {
					req.Format = api.FormatDir
				}
			}
			switch req.Format {
			case api.FormatOCI, api.FormatDir, api.FormatDocker:
			default:
				return cli.Usagef("unknown format %q: use %s, %s or %s", req.Format, api.FormatOCI, api.FormatDir, api.FormatDocker)
			}
			path, err := filepath.Abs(file)
			if err != nil {
				return err
			}
			return a.withImage(cmd, &registry, args[0], func(client *api.Client, r api.ImageRequest) error {
				req.ImageRequest = r
				if req.Format == api.FormatDir {
					req.Layout = path
					return client.Call(cmd.Context(), "POST", "/v1/save", req, nil)
				}
				return saveTo(cmd, client, req, path)
			})
		},
	}
	registry.Register(cmd, "pull")
	cmd.Flags().StringVarP(&file, "output", "o", "", "file or directory to write")
	cmd.Flags().StringVar(&req.Format, "format", "", "oci-archive, oci-dir or docker-archive (default oci-archive, or oci-dir where FILE is a directory)")
	return cmd
}

// saveTo writes the archive to path, whole or not at all.
func saveTo(cmd *cobra.Command, client *api.Client, req api.SaveRequest, path string) (err error) {
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		return fmt.Errorf("save: %s is not a file", path)
	}
	body, trailer, err := client.Raw(cmd.Context(), "POST", "/v1/save", req)
	if err != nil {
		return err
	}
	defer body.Close()
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	defer os.Remove(f.Name()) // of no effect once it is renamed
	_, err = io.Copy(f, body)
	if err == nil {
		err = trailer()
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("save %s: %w", req.Image, err)
	}
	return os.Rename(f.Name(), path)
}
