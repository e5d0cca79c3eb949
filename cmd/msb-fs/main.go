// Command msb-fs pulls, mounts and inspects OCI images without waiting for their bytes, and is the daemon that owns the
// cache.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:])
	stop()
	os.Exit(status)
}

// app is what all commands share.
type app struct {
	cli.Common
}

func run(ctx context.Context, args []string) int {
	a := &app{}
	root := &cobra.Command{
		Use:   "msb-fs",
		Short: "Mount and inspect OCI images before they have been pulled",
		Example: `  msb-fs mount python:3.12 /mnt      # returns when the mount is usable, not when the pull has ended
  msb-fs cat python /etc/debian_version
  msb-fs pull python redis`,
	}
	a.Register(root.PersistentFlags())
	root.AddCommand(a.pullCmd(), a.mountCmd(), a.umountCmd(), a.mountsCmd(), a.lsCmd(), a.catCmd(), a.statCmd(),
		a.imagesCmd(), a.inspectCmd(), a.rmiCmd(), a.pruneCmd(), a.dfCmd(), a.verifyCmd(),
		a.diffCmd(), a.commitCmd(), a.loadCmd(), a.saveCmd(), a.indexCmd(), a.loginCmd(), a.logoutCmd(), a.registriesCmd(), a.daemonCmd(), a.statusCmd(), a.stopCmd(), a.statsCmd(), versionCmd())
	return cli.Run(ctx, root, args, func(string) int { return cli.ExitFailed })
}

// version is the module's, as the Go toolchain recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "msb-fs", version())
			return nil
		},
	}
}
