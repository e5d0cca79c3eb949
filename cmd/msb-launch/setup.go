package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/vmboot"
)

func (a *app) setupCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "setup",
		Example: "  msb-launch setup",
		Short:   "Get the guest kernel",
		Long: "Get the guest kernel: Debian's cloud kernel, by apt, which checks its signature. Needs no root. Root's serves every\n" +
			"user of this machine; anybody else's is kept in their own data directory.",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd)
			defer stop()
			kernel, err := vmboot.SetupKernel(ctx, vmboot.SetupOptions{Progress: func(msg string) { a.Notef(cmd, "%s", msg) }})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), kernel.Path)
			return nil
		},
	}
}

func (a *app) doctorCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "doctor",
		Example: "  msb-launch doctor\n  msb-launch doctor --json",
		Short:   "Say what this host has for sandboxes, what is missing and how to get it",
		Long:    "Say what this host has for sandboxes, what is missing and how to get it. Exits with 1 when sandboxes cannot run.",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd)
			defer stop()
			checks := vmboot.Doctor(ctx)
			err := out.Print(cmd.OutOrStdout(), checks, func(w io.Writer) error {
				for _, c := range checks {
					mark := "ok"
					switch {
					case !c.OK && c.Needed:
						mark = "MISSING"
					case !c.OK:
						mark = "absent"
					}
					fmt.Fprintf(w, "%-8s %-8s %s\n", mark, c.Name, c.Detail)
				}
				return nil
			})
			if err != nil {
				return err
			}
			for _, c := range checks {
				if !c.OK && c.Needed {
					return cli.Status(cli.ExitFailed)
				}
			}
			return nil
		},
	}
	out.Register(cmd.Flags())
	return cmd
}
