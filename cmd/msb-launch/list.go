package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	msb "github.com/microsandbox/msb-fs"
	"github.com/microsandbox/msb-fs/internal/cli"
)

// sandboxInfo is what ls and inspect say of a sandbox.
type sandboxInfo struct {
	msb.Spec
	Status string    `json:"status"` // created, running, exited, crashed or damaged
	Upper  string    `json:"upper"`
	State  msb.State `json:"state"`
}

func info(sb *msb.Sandbox) sandboxInfo {
	state := sb.State()
	i := sandboxInfo{Spec: sb.Spec, State: state, Upper: sb.Upper()}
	switch {
	case sb.Damaged() != nil:
		i.Status = "damaged"
	case sb.Running():
		i.Status = "running"
	case state.Started.IsZero():
		i.Status = "created"
	case state.Finished.IsZero():
		i.Status = "crashed" // its supervisor was killed
	default:
		i.Status = "exited"
	}
	return i
}

func (a *app) lsCmd() *cobra.Command {
	var out cli.Output
	var all bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"ps"},
		Short:   "List sandboxes that run, or all",
		Example: "  msb-launch ls\n  msb-launch ps -a --json\n  msb-launch ls -aq",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, err := a.host()
			if err != nil {
				return err
			}
			sandboxes, err := host.List()
			if err != nil {
				return err
			}
			infos := []sandboxInfo{}
			for _, sb := range sandboxes {
				i := info(sb)
				if all || i.Status == "running" {
					infos = append(infos, i)
				}
			}
			return out.Print(cmd.OutOrStdout(), infos, func(w io.Writer) error {
				if a.Quiet {
					for _, i := range infos {
						fmt.Fprintln(w, i.Name)
					}
					return nil
				}
				t := cli.NewTable(w, "NAME", "ID", "IMAGE", "STATUS", "CREATED")
				for _, i := range infos {
					t.Row(i.Name, i.ID, i.Image, statusText(i), i.Created.Local().Format(time.DateTime))
				}
				return t.Flush()
			})
		},
	}
	out.Register(cmd.Flags())
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list those that do not run too")
	return cmd
}

func statusText(i sandboxInfo) string {
	switch i.Status {
	case "running":
		return "running for " + time.Since(i.State.Started).Round(time.Second).String()
	case "exited":
		if i.State.Error != "" {
			return "failed"
		}
		return fmt.Sprintf("exited (%d)", i.State.ExitCode)
	default:
		return i.Status
	}
}

func (a *app) inspectCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:               "inspect NAME",
		Short:             "Print all that is known of a sandbox, as JSON",
		Example:           "  msb-launch inspect worker",
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
			// There is no other form, but every command that prints JSON may be asked for it.
			return out.Print(cmd.OutOrStdout(), info(sb), func(w io.Writer) error { return cli.JSON(w, info(sb)) })
		},
	}
	out.Register(cmd.Flags())
	return cmd
}

// completeNames lets a shell complete the names of sandboxes.
func (a *app) completeNames(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	host, err := a.host()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	sandboxes, err := host.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, sb := range sandboxes {
		if !slices.Contains(args, sb.Name) {
			names = append(names, sb.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
