package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

func (a *app) rmiCmd() *cobra.Command {
	var out cli.Output
	var platform string
	cmd := &cobra.Command{
		Use:     "rmi [OPTIONS] IMAGE...",
		Short:   "Forget images, and remove what only they need from the cache",
		Example: "  msb-fs rmi python:3.12\n  msb-fs rmi --platform linux/arm64 python:3.12",
		Args:    cli.Args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			all := api.Freed{Images: []api.Removed{}}
			err := a.withDaemon(cmd, func(client *api.Client) error {
				var errs []error
				for _, ref := range args {
					var freed api.Freed
					q := url.Values{"ref": {ref}, "platform": {platform}}
					errs = append(errs, client.Call(cmd.Context(), "DELETE", "/v1/images?"+q.Encode(), nil, &freed))
					all.Images, all.Bytes = append(all.Images, freed.Images...), all.Bytes+freed.Bytes
				}
				return errors.Join(errs...)
			})
			if len(all.Images) == 0 && err != nil {
				return err
			}
			return errors.Join(err, a.printFreed(cmd, out, all))
		},
	}
	out.Register(cmd.Flags())
	cmd.Flags().StringVar(&platform, "platform", "", "the platform that the image was pulled for, if one was named")
	return cmd
}

func (a *app) printFreed(cmd *cobra.Command, out cli.Output, freed api.Freed) error {
	return out.Print(cmd.OutOrStdout(), freed, func(w io.Writer) error {
		for _, ref := range freed.Images {
			fmt.Fprintln(w, ref)
		}
		a.Notef(cmd, "freed %s", cli.Bytes(freed.Bytes))
		return nil
	})
}

func (a *app) pruneCmd() *cobra.Command {
	var out cli.Output
	var req api.PruneRequest
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove what no image, mount or sandbox needs from the cache",
		Long: "Remove what no image, mount or sandbox needs from the cache. Images that have been pulled stay, unless --all is given;\n" +
			"their references are then printed.",
		Example: "  msb-fs prune\n  msb-fs prune --all --chunks",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var freed api.Freed
			err := a.withDaemon(cmd, func(client *api.Client) error {
				return client.Call(cmd.Context(), "POST", "/v1/prune", req, &freed)
			})
			if err != nil {
				return err
			}
			return a.printFreed(cmd, out, freed)
		},
	}
	out.Register(cmd.Flags())
	cmd.Flags().BoolVarP(&req.All, "all", "a", false, "forget every image that is not in use and that no sandbox is made of")
	cmd.Flags().BoolVar(&req.Chunks, "chunks", false, "drop the contents of images that are not in use: they are fetched again when needed")
	return cmd
}

func (a *app) dfCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "df",
		Short:   "Show what the home directory takes on disk",
		Example: "  msb-fs df\n  msb-fs df --format json",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var u api.DiskUsage
			if err := a.ask(cmd, "/v1/usage", &u); err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), u, func(w io.Writer) error {
				limit := "no limit"
				if u.Limit > 0 {
					limit = "limit " + cli.Bytes(u.Limit)
				}
				t := cli.NewTable(w, "WHAT", "DISK", "")
				t.Row("chunks", cli.Bytes(u.DiskBytes), fmt.Sprintf("%d, %s in use by open images, %s", u.Chunks, cli.Bytes(u.InUse), limit))
				t.Row("loaded layers", cli.Bytes(u.Blobs), "")
				t.Row("layer indexes", cli.Bytes(u.Indexes), "")
				t.Row("image trees", cli.Bytes(u.Trees), "")
				t.Row("database", cli.Bytes(u.Database), "")
				t.Row("sandboxes", cli.Bytes(u.Sandboxes), "")
				t.Row("free", cli.Bytes(u.Free), "on the file system")
				return t.Flush()
			})
		},
	}
	out.Register(cmd.Flags())
	return cmd
}

func (a *app) verifyCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "verify",
		Short:   "Check all that is cached against its digests; what is wrong is dropped, and fetched again when it is needed",
		Example: "  msb-fs verify",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var v api.Verified
			err := a.withDaemon(cmd, func(client *api.Client) error {
				return client.Call(cmd.Context(), "POST", "/v1/verify", nil, &v)
			})
			if err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%d chunks, %s: %d wrong\n", v.Chunks, cli.Bytes(v.Bytes), v.Wrong)
				return err
			})
		},
	}
	out.Register(cmd.Flags())
	return cmd
}
