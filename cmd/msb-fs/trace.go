package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/trace"
)

// tracing is one call of the trace command.
type tracing struct {
	app      *app
	registry cli.Registry
	out      cli.Output
	dir      string // of the files that are written
	mount    string // that is there already; "" mounts an image
	duration time.Duration
	top      int
	started  bool           // a command, which has ended well
	undo     []func() error // of what a traced image needed; the last first
}

func (a *app) traceCmd() *cobra.Command {
	t := &tracing{app: a}
	cmd := &cobra.Command{
		Use:   "trace [OPTIONS] IMAGE [-- CMD [ARG...]] | trace [OPTIONS] --mount DIR [-- CMD [ARG...]]",
		Short: "Show where the time goes when a command starts on a mount, as the kernel sees it",
		Long: "Mount an image, run a command in it, and show where its time went: requests by operation, page-cache hits and misses by file, and\n" +
			"for each process what it was blocked on. With --mount trace a mount that is there already, while CMD runs on the host, or for\n" +
			"--duration, or until interrupted. Prints tables; the directory of --output gets " + trace.HTMLFile + ", " + trace.ChromeFile + " for\n" +
			"ui.perfetto.dev, " + trace.ReportFile + " and " + trace.RecordingFile + ". Root only; the kernel needs BTF and FUSE's tracepoints.",
		Example: "  msb-fs trace -o ./where python:3.12 -- python3 -c 'import json'\n  msb-fs trace --mount /mnt --duration 10s",
		Args:    cli.Args(cobra.ArbitraryArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (t.mount == "") == (len(args) == 0 || cmd.ArgsLenAtDash() == 0) {
				return cli.Usagef("trace needs an image, or --mount DIR")
			}
			return t.run(cmd, args)
		},
	}
	t.registry.Register(cmd, "pull")
	t.out.Register(cmd.Flags())
	f := cmd.Flags()
	f.StringVarP(&t.dir, "output", "o", "msb-trace", "directory to write to")
	f.StringVar(&t.mount, "mount", "", "trace what is mounted here")
	f.DurationVar(&t.duration, "duration", 0, "with --mount and no command: trace for so long (default until interrupted)")
	f.IntVar(&t.top, "top", 20, "how many files to show")
	return cmd
}

func (t *tracing) run(cmd *cobra.Command, args []string) error {
	if err := trace.Probe(); err != nil {
		return err
	}
	home, err := t.app.Home()
	if err != nil {
		return err
	}
	socket, err := home.Socket()
	if err != nil {
		return err
	}
	var rec *trace.Recording
	err = t.app.withDaemon(cmd, func(client *api.Client) error {
		var ran error
		rec, ran = trace.Record(cmd.Context(), trace.Daemon{Socket: socket}, func(ctx context.Context, add func(string) error) error {
			if t.mount != "" {
				return t.existing(cmd, args, add)
			}
			return t.image(cmd, client, home, args, add)
		})
		if ran == nil && t.started {
			ran = t.learn(cmd.Context(), trace.Daemon{Socket: socket}, rec)
		}
		for _, fn := range slices.Backward(t.undo) { // not before: the paths of what was seen are the mount's
			if err := fn(); err != nil { // what is still mounted is not to be removed
				ran = errors.Join(ran, err)
				break
			}
		}
		return ran
	})
	var status cli.Status
	if err != nil && !errors.As(err, &status) {
		return err
	}
	report, werr := trace.Write(t.dir, rec)
	if werr != nil {
		return errors.Join(err, werr)
	}
	t.app.Notef(cmd, "written to %s", t.dir)
	return errors.Join(t.out.Print(cmd.ErrOrStderr(), report, func(w io.Writer) error { return trace.WriteTop(w, report, t.top) }), err)
}

// learn makes the start-up profile of the image, or images, of what the command has used.
func (t *tracing) learn(ctx context.Context, d trace.Daemon, rec *trace.Recording) error {
	used := trace.Profile(rec)
	for _, dir := range rec.Mounts {
		if err := d.Learn(ctx, dir, used); err != nil {
			return err
		}
	}
	return nil
}

// existing traces a mount while a command runs on the host, or some time passes.
func (t *tracing) existing(cmd *cobra.Command, args []string, add func(string) error) error {
	dir, err := mountPoint(t.mount)
	if err != nil {
		return err
	}
	if err := add(dir); err != nil {
		return err
	}
	if len(args) > 0 {
		return t.command(cmd, exec.CommandContext(cmd.Context(), args[0], args[1:]...))
	}
	ctx := cmd.Context()
	if t.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.duration)
		defer cancel()
	}
	<-ctx.Done()
	return nil
}

// inside runs $3... with the root $0, which gets the host's /proc and /dev if it has directories for them. The mounts are gone with it.
// $1 and $2 are the host's mount and chroot: the PATH is the image's.
const inside = `mount=$1; chroot=$2; shift 2; for d in proc dev; do [ -d "$0/$d" ] && "$mount" --rbind "/$d" "$0/$d"; done; exec "$chroot" "$0" "$@"`

// image mounts an image, writable, and runs a command in it.
func (t *tracing) image(cmd *cobra.Command, client *api.Client, home api.Home, args []string, add func(string) error) error {
	ctx := cmd.Context()
	tmp, err := os.MkdirTemp("", "msb-trace")
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	t.undo = append(t.undo, func() error { return os.RemoveAll(tmp) })
	req := api.MountRequest{Dir: filepath.Join(tmp, "root"), Upper: filepath.Join(tmp, "upper")}
	if err := os.Mkdir(req.Dir, 0o755); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	if req.ImageRequest, err = t.registry.Request(cmd, home, args[0]); err != nil {
		return err
	}
	var config v1.ConfigFile
	err = client.Stream(ctx, "POST", "/v1/mounts", req, func(e api.Event) error {
		if e.Image == nil || len(e.Image.Config) == 0 {
			return nil
		}
		return json.Unmarshal(e.Image.Config, &config)
	})
	if err != nil {
		return err
	}
	t.undo = append(t.undo, func() error {
		return client.Call(context.WithoutCancel(ctx), "DELETE", "/v1/mounts?"+url.Values{"dir": {req.Dir}}.Encode(), nil, nil)
	})
	if err := add(req.Dir); err != nil {
		return err
	}
	argv := api.Argv(config.Config, nil, args[1:])
	if len(argv) == 0 {
		return fmt.Errorf("%s says no command to run: name one", args[0])
	}
	var tools [2]string
	for i, name := range []string{"mount", "chroot"} {
		if tools[i], err = exec.LookPath(name); err != nil {
			return fmt.Errorf("trace: %w", err)
		}
	}
	run := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "/bin/sh", "-c", inside, req.Dir, tools[0], tools[1]}, argv...)...)
	run.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}, config.Config.Env...)
	return t.command(cmd, run)
}

// command runs c with this command's own streams; its status becomes this command's.
func (t *tracing) command(cmd *cobra.Command, c *exec.Cmd) error {
	c.Stdin, c.Stdout, c.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	err := c.Run()
	t.started = err == nil
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return cli.Status(exit.ExitCode())
	}
	return err
}
