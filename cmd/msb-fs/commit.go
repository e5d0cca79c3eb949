package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/remote"
)

func (a *app) diffCmd() *cobra.Command {
	var registry cli.Registry
	var out cli.Output
	cmd := &cobra.Command{
		Use:   "diff [OPTIONS] UPPER|SANDBOX [IMAGE]",
		Short: "List the paths that an upper directory or a sandbox has added, changed or deleted",
		Long: "List the paths that an upper directory, or the sandbox of that name, has added (A), changed (C) or deleted (D). It must not\n" +
			"be in use. The image is the one that it was written over; IMAGE, if it is given, must be that one.",
		Example: "  msb-fs diff worker\n  msb-fs diff ./changes python:3.12",
		Args:    cli.Args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := a.Home()
			if err != nil {
				return err
			}
			settings, err := registry.Request(cmd, home, "")
			if err != nil {
				return err
			}
			req := api.UpperRequest{Access: settings.Access}
			if req.Upper, err = upperOf(home, args[0]); err != nil {
				return err
			}
			if len(args) == 2 {
				req.Image = args[1]
			}
			var changes []api.Change
			err = a.withDaemon(cmd, func(client *api.Client) error {
				body, trailer, err := client.Raw(cmd.Context(), "POST", "/v1/diff", req)
				if err != nil {
					return err
				}
				defer body.Close()
				if changes, err = decodeChanges(body); err != nil {
					return err
				}
				return trailer()
			})
			if err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), changes, func(w io.Writer) error {
				for _, c := range changes {
					fmt.Fprintf(w, "%.1s %s\n", strings.ToUpper(c.Kind), c.Path)
				}
				return nil
			})
		},
	}
	registry.Register(cmd, "pull")
	out.Register(cmd.Flags())
	return cmd
}

func decodeChanges(r io.Reader) ([]api.Change, error) {
	changes := []api.Change{}
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var c api.Change
		if err := dec.Decode(&c); errors.Is(err, io.EOF) {
			return changes, nil
		} else if err != nil {
			return nil, fmt.Errorf("read msb-fs daemon's answer: %w", err)
		}
		changes = append(changes, c)
	}
}

// upperOf is the absolute path of an upper directory: of the sandbox of that name, or of what is at that path.
func upperOf(home api.Home, name string) (string, error) {
	if !strings.ContainsRune(name, '/') {
		if upper := filepath.Join(home.Sandbox(name), "upper"); isDir(upper) {
			return upper, nil
		}
	}
	if !isDir(name) {
		return "", fmt.Errorf("%s is neither a sandbox nor a directory", name)
	}
	return filepath.Abs(name)
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

func (a *app) commitCmd() *cobra.Command {
	var registry cli.Registry
	cmd := &cobra.Command{
		Use:   "commit [OPTIONS] UPPER|SANDBOX NEW-IMAGE",
		Short: "Make an image of an upper directory or sandbox: what it has changed becomes a layer",
		Long: "Make an image of an upper directory or sandbox, which must not be in use: what it has changed becomes the top layer.\n" +
			"NEW-IMAGE is pushed when it begins with a registry's host, as in registry.example/team/app:2; else it is the directory of\n" +
			"an OCI image layout, with a tag behind a colon. Prints the manifest's digest.",
		Example: "  msb-fs commit worker registry.example/team/app:2\n  msb-fs commit ./changes ./layout:2",
		Args:    cli.Args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := a.Home()
			if err != nil {
				return err
			}
			settings, err := registry.Request(cmd, home, "")
			if err != nil {
				return err
			}
			req := api.CommitRequest{UpperRequest: api.UpperRequest{Access: settings.Access}}
			if req.Upper, err = upperOf(home, args[0]); err != nil {
				return err
			}
			if err := target(&req, args[1]); err != nil {
				return err
			}
			var made api.Committed
			err = a.withDaemon(cmd, func(client *api.Client) error {
				return client.Call(cmd.Context(), "POST", "/v1/commit", req, &made)
			})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), made.Digest)
			return nil
		},
	}
	registry.Register(cmd, "pull")
	return cmd
}

// target fills in where NEW-IMAGE says that the image goes.
func target(req *api.CommitRequest, name string) (err error) {
	host, _, slash := strings.Cut(name, "/")
	if slash && host != "." && host != ".." && (host == "localhost" || strings.ContainsAny(host, ".:")) {
		req.Reference, err = remote.Normalize(name)
		return err
	}
	dir, tag := name, "latest"
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		dir, tag = name[:i], name[i+1:]
	}
	if dir == "" || tag == "" {
		return cli.Usagef("%q is neither an image of a registry nor a directory[:tag]", name)
	}
	req.Tag = tag
	req.Layout, err = filepath.Abs(dir)
	return err
}
