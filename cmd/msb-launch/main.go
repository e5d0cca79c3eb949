// Command msb-launch runs sandboxes: microVMs whose root filesystem is an OCI image that need not have been pulled.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	msb "github.com/microsandbox/msb-fs"
	"github.com/microsandbox/msb-fs/internal/cli"
)

// exitLauncher is the exit status when the launcher itself fails where it would be a command's own, as Docker has it.
const exitLauncher = 125

// failed is the exit status of a command of ours that has failed.
func failed(command string) int {
	switch command {
	case "run", "exec":
		return exitLauncher
	default:
		return cli.ExitFailed
	}
}

func main() { os.Exit(run(context.Background(), os.Args[1:])) }

// app is what all commands share.
type app struct {
	cli.Common
}

func run(ctx context.Context, args []string) int {
	a := &app{}
	root := &cobra.Command{
		Use:   "msb-launch",
		Short: "Run sandboxes: microVMs that start before their image has been pulled",
		Example: `  msb-launch setup                                  # once: gets the guest kernel
  msb-launch run python -- python3 -c 'print(1)'
  msb-launch run --name worker -e K=V alpine sh`,
	}
	a.Register(root.PersistentFlags())
	root.AddCommand(a.runCmd(), a.createCmd(), a.startCmd(), a.stopCmd(), a.restartCmd(), a.execCmd(), a.lsCmd(), a.inspectCmd(),
		a.logsCmd(), a.cpCmd(), a.rmCmd(), a.superviseCmd(), a.poolCmd(), a.keeperCmd(), a.setupCmd(), a.doctorCmd(), versionCmd())
	return cli.Run(ctx, root, args, failed)
}

// host is the chosen home directory.
func (a *app) host() (*msb.Host, error) {
	host, err := msb.Open(a.HomeDir, "--log-level", a.LogLevel)
	if err == nil && !a.Quiet {
		end := "\n"
		if cli.IsTerminal(os.Stderr) {
			end = "\r\n" // it may be raw by then
		}
		host.Waiting = func(note string) { fmt.Fprint(os.Stderr, cli.Line(errors.New(note)), end) }
	}
	return host, err
}

// interruptible ends ctx with the first SIGINT or SIGTERM, for commands that have no process to send it to.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
}

func versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  msb-launch version",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			version := "(devel)"
			if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
				version = info.Main.Version
			}
			fmt.Fprintln(cmd.OutOrStdout(), "msb-launch", version)
			return nil
		},
	}
}
