package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

func (a *app) indexCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "index",
		Short: "Make, publish and fetch what makes an image's plain layers lazy everywhere",
		Long: "Make, publish and fetch the indexes of an image's plain gzip, zstd and tar layers. One machine's first pull leaves them\n" +
			"behind; published beside the image, or in a repository of your own, they make the first start lazy on every other one.",
	}
	cmd.Example = "  msb-fs index build registry.example/team/app:1\n  msb-fs index push registry.example/team/app:1"
	cmd.AddCommand(a.indexBuildCmd(), a.indexPushCmd(), a.indexPullCmd())
	return cmd
}

func (a *app) indexBuildCmd() *cobra.Command {
	var registry cli.Registry
	cmd := &cobra.Command{
		Use:     "build IMAGE",
		Short:   "Pull the image whole, which leaves its layers' indexes behind",
		Example: "  msb-fs index build registry.example/team/app:1",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pull(cmd, &registry, api.PullRequest{}, args)
		},
	}
	registry.Register(cmd, "pull")
	return cmd
}

func (a *app) indexPushCmd() *cobra.Command {
	var registry cli.Registry
	var out cli.Output
	var to string
	cmd := &cobra.Command{
		Use:     "push IMAGE",
		Short:   "Publish the indexes of an image's layers",
		Long:    "Publish the indexes of an image's layers: to the repository of --to, else those of index.push_to in config.json, else the image's.",
		Example: "  msb-fs index push registry.example/team/app:1\n  msb-fs index push --to registry.example/team/indexes python:3.12",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withImage(cmd, &registry, args[0], func(client *api.Client, req api.ImageRequest) error {
				var pushed []api.PushedIndex
				err := client.Call(cmd.Context(), "POST", "/v1/index/push", api.IndexRequest{ImageRequest: req, Repository: to}, &pushed)
				if err != nil {
					return err
				}
				return out.Print(cmd.OutOrStdout(), pushed, func(w io.Writer) error {
					for _, p := range pushed {
						fmt.Fprintf(w, "%s@%s\n", p.Repository, p.Digest)
					}
					return nil
				})
			})
		},
	}
	registry.Register(cmd, "pull")
	out.Register(cmd.Flags())
	cmd.Flags().StringVar(&to, "to", "", "repository to publish to")
	return cmd
}

func (a *app) indexPullCmd() *cobra.Command {
	var registry cli.Registry
	var from string
	cmd := &cobra.Command{
		Use:     "pull IMAGE",
		Short:   "Fetch the indexes of an image's layers; commands that open an image for the first time do so by themselves",
		Example: "  msb-fs index pull --from registry.example/team/indexes python:3.12",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withImage(cmd, &registry, args[0], func(client *api.Client, req api.ImageRequest) error {
				var pulled api.PulledIndex
				err := client.Call(cmd.Context(), "POST", "/v1/index/pull", api.IndexRequest{ImageRequest: req, Repository: from}, &pulled)
				if err != nil {
					return err
				}
				a.Notef(cmd, "fetched the indexes of %d layers", pulled.Layers)
				return nil
			})
		},
	}
	registry.Register(cmd, "pull")
	cmd.Flags().StringVar(&from, "from", "", "repository to look in")
	return cmd
}
