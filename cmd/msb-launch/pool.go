package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	msb "github.com/microsandbox/msb-fs"
	"github.com/microsandbox/msb-fs/internal/cli"
)

func (a *app) poolCmd() *cobra.Command {
	var o msb.PoolOptions
	var memory string
	cmd := &cobra.Command{
		Use:   "pool [OPTIONS]",
		Short: "Keep VMs booted, for sandboxes to start in at once",
		Long: "Keep VMs booted that have no image yet, until this command is interrupted. A sandbox of the same home that asks for the same\n" +
			"number of CPUs, memory, kernel and accelerator, and has no volumes, starts in one of them; others, and those that find none\n" +
			"ready, boot their own. Each VM is used once. `run --timing` says which it was.",
		Example: "  msb-launch pool --size 2 &\n  msb-launch pool --size 4 --cpus 2 --memory 1G",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Size < 1 || o.Size > maxPool {
				return cli.Usagef("--size %d: must be 1 to %d", o.Size, maxPool)
			}
			if o.MemoryMiB, err = cli.ParseMiB("--memory", memory, minMemoryMiB); err != nil {
				return err
			}
			host, err := a.host()
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			if !a.Quiet {
				o.Ready = func(n int) { fmt.Fprintf(cmd.ErrOrStderr(), "pool: %d of %d ready\n", n, o.Size) }
			}
			o.Failed = func(err error) { fmt.Fprintf(cmd.ErrOrStderr(), "msb-launch: %s\n", cli.Line(err)) }
			return host.Pool(ctx, o)
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&o.Size, "size", 1, "how many VMs to keep ready")
	fl.IntVarP(&o.CPUs, "cpus", "c", 1, "virtual CPUs of each")
	fl.StringVarP(&memory, "memory", "m", "512M", "memory of each, as 512M or 2G")
	fl.StringVar(&o.Kernel, "kernel", "", "guest kernel (default the one that setup got)")
	fl.StringVar(&o.Accel, "accel", "auto", "auto, kvm or tcg")
	return cmd
}

// maxPool is the largest pool: each VM is a process and its memory.
const maxPool = 256

// keeperCmd is what Pool runs.
func (a *app) keeperCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "keeper",
		Hidden: true,
		Args:   cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, err := a.host()
			if err != nil {
				return err
			}
			signal.Ignore(syscall.SIGPIPE) // a pool that has ended does not end a sandbox
			return host.Keep(cmd.Context(), os.Stdin, os.Stdout)
		},
	}
}
