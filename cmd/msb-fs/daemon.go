package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/internal/daemon"
)

// idleTimeout is how long a daemon that nobody needs stays, unless told otherwise.
const idleTimeout = 10 * time.Minute

// lockPatience is how long a daemon that is stopping may take before the next one gives up: it unmounts, and closes its cache.
const lockPatience = 30 * time.Second

func (a *app) daemonCmd() *cobra.Command {
	var foreground bool
	var idle time.Duration
	cmd := &cobra.Command{
		Use:     "daemon",
		Short:   "Run the daemon that owns the cache; other commands start it when they need it",
		Example: "  msb-fs daemon --idle-timeout 1h\n  msb-fs daemon --foreground --log-level debug",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := a.Home()
			if err != nil {
				return err
			}
			if !foreground {
				client, err := api.Connect(cmd.Context(), home, "--log-level", a.LogLevel, "--idle-timeout", idle.String())
				if err == nil {
					client.Close()
				}
				return err
			}
			var level slog.Level
			if err := level.UnmarshalText([]byte(a.LogLevel)); err != nil {
				return cli.Usagef("unknown log level %q: use debug, info, warn or error", a.LogLevel)
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			return daemon.Run(cmd.Context(), home, daemon.Options{IdleTimeout: idle, LockPatience: lockPatience, Log: log, Version: version()})
		},
	}
	cmd.Flags().BoolVar(&foreground, "foreground", false, "stay in the foreground and log to standard error")
	cmd.Flags().DurationVar(&idle, "idle-timeout", idleTimeout, "exit after so long without mounts, sandboxes, fetches and requests; 0 never")
	cmd.AddCommand(a.statusCmd(), a.stopCmd())
	return cmd
}

func (a *app) statusCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Say whether a daemon runs and what it does; starts none",
		Example: "  msb-fs status --json",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := a.Home()
			if err != nil {
				return err
			}
			client, ok := api.Running(cmd.Context(), home)
			if !ok {
				return fmt.Errorf("no daemon serves %s; one starts with the first command that needs it", home)
			}
			defer client.Close()
			var s api.Status
			if err := client.Call(cmd.Context(), "GET", "/v1/status", nil, &s); err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), s, func(w io.Writer) error { return printStatus(w, s) })
		},
	}
	out.Register(cmd.Flags())
	return cmd
}

func printStatus(w io.Writer, s api.Status) error {
	fmt.Fprintf(w, "pid        %d\nversion    %s\nhome       %s\nup         %s\nmounts     %d\nsandboxes  %d\n", s.PID, s.Version, s.Home,
		time.Duration(s.Uptime*float64(time.Second)).Round(time.Second), s.Mounts, s.Sandboxes)
	for _, f := range s.Fetching {
		fmt.Fprintf(w, "fetching   %s\n", f)
	}
	for _, n := range s.Notes {
		fmt.Fprintf(w, "note       %s\n", n)
	}
	return nil
}

// stopWait bounds how long stop waits for the daemon to end.
const stopWait = 60 * time.Second

func (a *app) stopCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "stop",
		Short:   "Stop the daemon: its mounts are unmounted, its sandboxes end",
		Example: "  msb-fs stop",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := a.Home()
			if err != nil {
				return err
			}
			return api.Stop(cmd.Context(), home, stopWait)
		},
	}
}

func (a *app) statsCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "stats",
		Short:   "Show the daemon's counters: cache hits, bytes fetched, memory, per mount and sandbox",
		Example: "  msb-fs stats\n  msb-fs stats --json",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s api.Stats
			if err := a.ask(cmd, "/v1/stats", &s); err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), s, func(w io.Writer) error { return printStats(w, s) })
		},
	}
	out.Register(cmd.Flags())
	return cmd
}

func printStats(w io.Writer, s api.Stats) error {
	fmt.Fprintf(w, "hits %d, misses %d\nfetched %s in %d requests\ncache %s in %d chunks, %.2f x deduplicated, %d refetched\nmemory %s\n", s.Hits, s.Misses,
		cli.Bytes(s.BytesFetched), s.Requests, cli.Bytes(s.CacheBytes), s.CacheChunks, s.DedupRatio, s.Refetched, cli.Bytes(s.RSS))
	t := cli.NewTable(w, "\nIN USE", "IMAGE", "FETCHED", "OF")
	for _, m := range append(s.Mounts, s.Sandboxes...) {
		t.Row(m.Name, m.Reference, cli.Bytes(m.Usage.BytesFetched), cli.Bytes(m.Usage.ImageBytes))
	}
	return t.Flush()
}
