package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	msb "github.com/microsandbox/msb-fs"
	"github.com/microsandbox/msb-fs/internal/cli"
)

func (a *app) createCmd() *cobra.Command {
	var f specFlags
	cmd := &cobra.Command{
		Use:     "create [OPTIONS] IMAGE [ARG...]",
		Short:   "Make a sandbox and pin its image; boots nothing",
		Example: "  msb-launch create --name worker python:3.12 python3 -m http.server\n  msb-launch start worker",
		Args:    cli.Args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			host, err := a.host()
			if err != nil {
				return err
			}
			registry, pull, err := f.complete(a, cmd, args)
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			sb, err := host.Create(ctx, f.spec, registry, pull)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), sb.Name)
			return nil
		},
	}
	f.register(cmd)
	return cmd
}

// each makes a command that does fn to every sandbox named, and fails if it failed for one.
func (a *app) each(cmd *cobra.Command, fn func(context.Context, *msb.Sandbox) error) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = cli.Args(cobra.MinimumNArgs(1)), a.completeNames
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		host, err := a.host()
		if err != nil {
			return err
		}
		ctx, stop := interruptible(cmd)
		defer stop()
		var errs []error
		for _, name := range names {
			sb, err := host.Get(name)
			if err == nil {
				err = fn(ctx, sb)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintln(cmd.OutOrStdout(), sb.Name)
		}
		return errors.Join(errs...)
	}
	return cmd
}

func (a *app) startCmd() *cobra.Command {
	return a.each(&cobra.Command{
		Use:     "start NAME...",
		Short:   "Start sandboxes in the background, each on the image it was made with",
		Example: "  msb-launch create --name worker python:3.12 python3 -m http.server\n  msb-launch start worker\n  msb-launch logs -f worker",
	}, func(ctx context.Context, sb *msb.Sandbox) error {
		return sb.Start(ctx)
	})
}

// stopGrace is what a command gets between SIGTERM and SIGKILL, as Docker has it.
const stopGrace = 10 * time.Second

func (a *app) stopCmd() *cobra.Command {
	var grace time.Duration
	cmd := a.each(&cobra.Command{
		Use:     "stop NAME...",
		Short:   "Stop sandboxes: their command is asked to end, then killed",
		Long:    "Stop sandboxes. Their command is asked to end by SIGTERM, or the signal that its image names, and killed after --grace.",
		Example: "  msb-launch stop worker\n  msb-launch stop --grace 1m database",
	}, func(ctx context.Context, sb *msb.Sandbox) error { return sb.Stop(ctx, grace) })
	cmd.Flags().DurationVar(&grace, "grace", stopGrace, "time between SIGTERM and SIGKILL")
	return cmd
}

func (a *app) restartCmd() *cobra.Command {
	var grace time.Duration
	cmd := a.each(&cobra.Command{
		Use:     "restart NAME...",
		Short:   "Stop sandboxes, if they run, and start them",
		Example: "  msb-launch restart worker",
	}, func(ctx context.Context, sb *msb.Sandbox) error {
		if err := sb.Stop(ctx, grace); err != nil {
			return err
		}
		return sb.Start(ctx)
	})
	cmd.Flags().DurationVar(&grace, "grace", stopGrace, "time between SIGTERM and SIGKILL")
	return cmd
}

func (a *app) rmCmd() *cobra.Command {
	var force bool
	cmd := a.each(&cobra.Command{
		Use:     "rm NAME...",
		Short:   "Remove sandboxes with everything they have written",
		Example: "  msb-launch rm worker\n  msb-launch rm -f $(msb-launch ls -aq)",
	}, func(ctx context.Context, sb *msb.Sandbox) error { return sb.Remove(ctx, force) })
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill those that run")
	return cmd
}

func (a *app) execCmd() *cobra.Command {
	var command msb.Command
	var env []string
	var inter bool
	cmd := &cobra.Command{
		Use:   "exec [OPTIONS] NAME CMD [ARG...]",
		Short: "Run a further command in a sandbox that runs",
		Long: "Run a further command in a sandbox that runs, with the environment, directory and user of its own command. Standard output,\n" +
			"error and the exit status are the command's; standard input with -i.",
		ValidArgsFunction: a.completeNames,
		Example:           "  msb-launch exec worker ps aux\n  msb-launch exec -it worker sh",
		Args:              cli.Args(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if command.Env, err = environment(nil, env); err != nil {
				return err
			}
			command.Args = afterDashes(args[1:])
			return a.exec(cmd, args[0], command, inter)
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.BoolVarP(&inter, "interactive", "i", false, "pass standard input on")
	fl.BoolVarP(&command.TTY, "tty", "t", false, "give the command a terminal")
	fl.StringArrayVarP(&env, "env", "e", nil, "set K=V, or take K from this environment")
	fl.StringVarP(&command.Dir, "workdir", "w", "", "working directory")
	fl.StringVarP(&command.User, "user", "u", "", "user[:group], names or numbers")
	return cmd
}

func (a *app) exec(cmd *cobra.Command, name string, command msb.Command, inter bool) error {
	host, err := a.host()
	if err != nil {
		return err
	}
	sb, err := host.Get(name)
	if err != nil {
		return err
	}
	p := msb.Process{Args: command.Args, Env: command.Env, Dir: command.Dir, User: command.User, TTY: command.TTY}
	terminal, err := openTerminal(command.TTY)
	if err != nil {
		return err
	}
	defer terminal.restore()
	signals, stop := forwarded()
	defer stop()
	p.Stdout, p.Stderr, p.Signals, p.Resize = os.Stdout, os.Stderr, signals, terminal.resize
	if inter {
		p.Stdin = os.Stdin
	}
	status, err := sb.Exec(cmd.Context(), p)
	return exit(cmd, status, err)
}

func (a *app) logsCmd() *cobra.Command {
	var follow, timestamps bool
	var tail int
	cmd := &cobra.Command{
		Use:               "logs [OPTIONS] NAME",
		Short:             "Print what a sandbox's command has written, on the streams it wrote it to",
		Example:           "  msb-launch logs worker\n  msb-launch logs -f --tail 20 -t worker",
		ValidArgsFunction: a.completeNames,
		Args:              cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			host, err := a.host()
			if err != nil {
				return err
			}
			sb, err := host.Get(args[0])
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			return sb.Logs(ctx, tail, follow, func(l msb.LogLine) error {
				w := cmd.OutOrStdout()
				if l.Stream == "stderr" {
					w = cmd.ErrOrStderr()
				}
				if timestamps {
					fmt.Fprintf(w, "%s ", l.Time.Format(time.RFC3339Nano))
				}
				_, err := w.Write(l.Log)
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the sandbox ends")
	cmd.Flags().BoolVarP(&timestamps, "timestamps", "t", false, "print the time of each line")
	cmd.Flags().IntVarP(&tail, "tail", "n", -1, "only so many of the last lines (default all)")
	return cmd
}

// superviseCmd is what Start runs in the background.
func (a *app) superviseCmd() *cobra.Command {
	var fork bool
	cmd := &cobra.Command{
		Use:    "supervise NAME",
		Hidden: true,
		Args:   cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			host, err := a.host()
			if err != nil {
				return err
			}
			if fork {
				return host.ForkSupervisor(args[0])
			}
			signals, stop := forwarded() // whoever waits for the start may go away
			defer stop()
			return host.SuperviseDetached(cmd.Context(), args[0], os.Stdin, os.Stdout, signals)
		},
	}
	cmd.Flags().BoolVar(&fork, "fork", false, "")
	return cmd
}
