package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

// withDaemon runs fn with a client of the daemon.
func (a *app) withDaemon(cmd *cobra.Command, fn func(*api.Client) error) error {
	client, err := a.Connect(cmd.Context())
	if err != nil {
		return err
	}
	defer client.Close()
	return fn(client)
}

// ask gets what the daemon has at path.
func (a *app) ask(cmd *cobra.Command, path string, into any) error {
	return a.withDaemon(cmd, func(client *api.Client) error {
		return client.Call(cmd.Context(), "GET", path, nil, into)
	})
}

func (a *app) imagesCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "images",
		Short:   "List cached images",
		Example: "  msb-fs images --format json",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			images := []api.Image{}
			if err := a.ask(cmd, "/v1/images", &images); err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), images, func(w io.Writer) error {
				t := cli.NewTable(w, "IMAGE", "DIGEST", "PLATFORM", "SIZE", "PINNED")
				for _, i := range images {
					t.Row(i.Reference, cli.ShortDigest(i.Digest), i.Platform, cli.Bytes(i.Size), i.Pinned.Local().Format(time.DateTime))
				}
				return t.Flush()
			})
		},
	}
	out.Register(cmd.Flags())
	return cmd
}

// inspection is what inspect prints as JSON: the image with its config as an object.
type inspection struct {
	api.Image
	Config json.RawMessage `json:"config"`
}

func (a *app) inspectCmd() *cobra.Command {
	var registry cli.Registry
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "inspect [OPTIONS] IMAGE",
		Short:   "Show an image's digests, layers and config, and how lazily each layer is served and why",
		Example: "  msb-fs inspect python:3.12\n  msb-fs inspect --json --pull never python:3.12",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			image := inspection{}
			err := a.withImage(cmd, &registry, args[0], func(client *api.Client, req api.ImageRequest) error {
				return client.Call(cmd.Context(), "POST", "/v1/inspect", req, &image.Image)
			})
			if err != nil {
				return err
			}
			image.Config = image.Image.Config
			return out.Print(cmd.OutOrStdout(), image, func(w io.Writer) error { return printInspection(w, image) })
		},
	}
	registry.Register(cmd, "pull")
	out.Register(cmd.Flags())
	return cmd
}

func printInspection(w io.Writer, image inspection) error {
	fmt.Fprintf(w, "reference  %s\ndigest     %s\nplatform   %s\nsize       %s\n\n", image.Reference, image.Digest, image.Platform, cli.Bytes(image.Size))
	t := cli.NewTable(w, "LAYER", "SIZE", "LOCAL", "MODE", "WHY")
	for _, l := range image.Layers {
		t.Row(cli.ShortDigest(l.Digest), cli.Bytes(l.Size), cli.Bytes(l.Have), l.Mode, l.Reason)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var config bytes.Buffer
	if err := json.Indent(&config, image.Config, "", "  "); err != nil {
		return fmt.Errorf("image config: %w", err)
	}
	_, err := fmt.Fprintf(w, "\n%s\n", config.Bytes())
	return err
}

// withImage runs fn with a client and a request for image.
func (a *app) withImage(cmd *cobra.Command, registry *cli.Registry, image string, fn func(*api.Client, api.ImageRequest) error) error {
	home, err := a.Home()
	if err != nil {
		return err
	}
	req, err := registry.Request(cmd, home, image)
	if err != nil {
		return err
	}
	return a.withDaemon(cmd, func(client *api.Client) error { return fn(client, req) })
}
