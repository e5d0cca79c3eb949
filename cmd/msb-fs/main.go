// Command msb-fs pulls, mounts and inspects OCI images without waiting for their bytes, and is the daemon that owns the
// cache.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
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
	return cli.Run(ctx, commands(), args, func(string) int { return cli.ExitFailed })
}

// commands is the tree of all commands.
func commands() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "msb-fs",
		Short: "Mount and inspect OCI images before they have been pulled",
		Example: `  msb-fs mount python:3.12 /mnt      # returns when the mount is usable, not when the pull has ended
  msb-fs cat python /etc/debian_version
  msb-fs pull python redis`,
	}
	root.Version = version()
	root.SetVersionTemplate("msb-fs {{.Version}}\n")
	a.Register(root.PersistentFlags())
	root.AddCommand(a.pullCmd(), a.mountCmd(), a.umountCmd(), a.mountsCmd(), a.lsCmd(), a.catCmd(), a.statCmd(),
		a.imagesCmd(), a.inspectCmd(), a.rmiCmd(), a.pruneCmd(), a.dfCmd(), a.verifyCmd(),
		a.diffCmd(), a.commitCmd(), a.loadCmd(), a.saveCmd(), a.indexCmd(), a.loginCmd(), a.logoutCmd(), a.registriesCmd(), a.daemonCmd(), a.statusCmd(), a.stopCmd(), a.statsCmd(), a.traceCmd(), versionCmd())
	return root
}

// version is the module's, as the Go toolchain recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func versionCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  msb-fs version --json",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			return out.Print(cmd.OutOrStdout(), v, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "msb-fs", version())
				return err
			})
		},
	}
	out.Register(cmd.Flags())
	return cmd
}
