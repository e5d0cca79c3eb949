package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

func (a *app) pullCmd() *cobra.Command {
	var registry cli.Registry
	var req api.PullRequest
	cmd := &cobra.Command{
		Use:   "pull [OPTIONS] IMAGE...",
		Short: "Bring images into the cache",
		Long: "Bring images into the cache, all layers and parts of layers in parallel. Prints each image's manifest digest.\n" +
			"With --lazy only what is needed to mount it at once: the rest is fetched when it is first read.",
		Example: "  msb-fs pull python:3.12\n  msb-fs pull --policy always ghcr.io/acme/app@sha256:...",
		Args:    cli.Args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pull(cmd, &registry, req, args)
		},
	}
	registry.Register(cmd, "policy")
	registry.Alias(cmd, "pull") // what other commands, and messages, call it
	cmd.Flags().BoolVar(&req.Lazy, "lazy", false, "resolve and index only")
	cmd.Flags().BoolVarP(&req.Force, "force", "f", false, "fetch again what is cached")
	return cmd
}

func (a *app) pull(cmd *cobra.Command, registry *cli.Registry, req api.PullRequest, refs []string) error {
	home, err := a.Home()
	if err != nil {
		return err
	}
	// One password for all: standard input can be read only once.
	settings, err := registry.Request(cmd, home, "")
	if err != nil {
		return err
	}
	return a.withDaemon(cmd, func(client *api.Client) error {
		for _, ref := range refs {
			req.ImageRequest = settings
			req.Image = ref
			digest, err := a.pullOne(cmd.Context(), client, cmd.ErrOrStderr(), req)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), digest)
		}
		return nil
	})
}

// pullOne pulls req.Image and returns its manifest digest; progress goes to w.
func (a *app) pullOne(ctx context.Context, client *api.Client, w io.Writer, req api.PullRequest) (digest string, err error) {
	p := newProgress(w, a.Quiet)
	defer p.close()
	err = client.Stream(ctx, "POST", "/v1/pull", req, func(e api.Event) error {
		if e.Image != nil {
			digest = e.Image.Digest
			p.update(e.Image.Layers)
		}
		p.update(e.Layers)
		return nil
	})
	return digest, err
}
