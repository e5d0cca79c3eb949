package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

func (a *app) mountCmd() *cobra.Command {
	var registry cli.Registry
	var req api.MountRequest
	var readOnly, timing bool
	var upperSize string
	cmd := &cobra.Command{
		Use:   "mount [OPTIONS] IMAGE DIR",
		Short: "Mount an image on a directory; returns when the mount is usable",
		Long: "Mount an image on a directory. It returns when the mount is usable: what has not been fetched yet comes when it is\n" +
			"first read, and the rest in the background. Read-only unless --upper names a directory to keep changes in.",
		Example: "  msb-fs mount python:3.12 /mnt\n  msb-fs mount --upper ./changes python:3.12 /mnt",
		Args:    cli.Args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if readOnly && req.Upper != "" {
				return cli.Usagef("--ro and --upper exclude each other")
			}
			if upperSize != "" {
				mib, err := cli.ParseMiB("--upper-size", upperSize, 1)
				if err != nil {
					return err
				}
				req.Limit = int64(mib) << 20
			}
			return a.mount(cmd, &registry, req, timing, args[0], args[1])
		},
	}
	registry.Register(cmd, "pull")
	cmd.Flags().BoolVar(&readOnly, "ro", false, "mount read-only (the default without --upper)")
	cmd.Flags().StringVar(&req.Upper, "upper", "", "make the mount writable and keep changes in this directory")
	cmd.Flags().StringVar(&upperSize, "upper-size", "", "what may be written in all, as 512M or 2G (default as much as the disk has room for)")
	cli.Choice(cmd.Flags(), &req.Verify, "verify", "lazy: check bytes as they come; strict: check whole layers before mounting", "lazy", "strict")
	cmd.Flags().BoolVar(&timing, "timing", false, "print on standard error when each step was reached")
	return cmd
}

func (a *app) mount(cmd *cobra.Command, registry *cli.Registry, req api.MountRequest, timing bool, image, dir string) error {
	start := time.Now()
	home, err := a.Home()
	if err != nil {
		return err
	}
	if req.ImageRequest, err = registry.Request(cmd, home, image); err != nil {
		return err
	}
	if req.Dir, err = mountPoint(dir); err != nil {
		return err
	}
	if req.Upper != "" {
		if req.Upper, err = filepath.Abs(req.Upper); err != nil {
			return err
		}
	}
	return a.withDaemon(cmd, func(client *api.Client) error {
		return client.Stream(cmd.Context(), "POST", "/v1/mounts", req, func(e api.Event) error {
			if timing {
				fmt.Fprintf(cmd.ErrOrStderr(), "%9.1f ms  %s\n", float64(time.Since(start).Microseconds())/1000, e.Name)
			}
			return nil
		})
	})
}

// mountPoint is the directory's own path, as the kernel's mount table will have it. A mount point whose server has died
// cannot be looked at; its path is then taken as it is.
func mountPoint(dir string) (string, error) {
	if dir == "" {
		return "", cli.Usagef("the directory's name is empty")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", dir, err)
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

func (a *app) umountCmd() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:     "umount [--lazy] DIR...",
		Short:   "Unmount images",
		Long:    "Unmount images. One that is in use stays mounted, and who uses it is said.",
		Example: "  msb-fs umount /mnt",
		Args:    cli.Args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(cmd, func(client *api.Client) error {
				var errs []error
				for _, arg := range args {
					dir, err := mountPoint(arg)
					if err == nil {
						query := url.Values{"dir": {dir}, "lazy": {strconv.FormatBool(lazy)}}
						err = client.Call(cmd.Context(), "DELETE", "/v1/mounts?"+query.Encode(), nil, nil)
					}
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "detach what is in use: it goes from the file tree at once, and its users get errors")
	return cmd
}

func (a *app) mountsCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "mounts",
		Short:   "List what is mounted",
		Example: "  msb-fs mounts --format json",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			mounts := []api.Mount{}
			if err := a.ask(cmd, "/v1/mounts", &mounts); err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), mounts, func(w io.Writer) error {
				t := cli.NewTable(w, "DIRECTORY", "IMAGE", "DIGEST", "UPPER", "SINCE")
				for _, m := range mounts {
					t.Row(m.Dir, m.Reference, cli.ShortDigest(m.Digest), cli.Dash(m.Upper), m.Since.Local().Format(time.DateTime))
				}
				return t.Flush()
			})
		},
	}
	out.Register(cmd.Flags())
	return cmd
}
