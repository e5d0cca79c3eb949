package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	msb "github.com/microsandbox/msb-fs"
	"github.com/microsandbox/msb-fs/internal/cli"
)

// sandboxInfo is what ls and inspect say of a sandbox.
type sandboxInfo struct {
	msb.Spec
	Status string    `json:"status"` // created, running, exited or crashed
	Upper  string    `json:"upper"`
	State  msb.State `json:"state"`
}

func info(sb *msb.Sandbox) sandboxInfo {
	state := sb.State()
	i := sandboxInfo{Spec: sb.Spec, State: state, Upper: sb.Upper()}
	switch {
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
	return &cobra.Command{
		Use:   "inspect NAME",
		Short: "Print all that is known of a sandbox, as JSON",
		Args:  cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			host, err := a.host()
			if err != nil {
				return err
			}
			sb, err := host.Get(args[0])
			if err != nil {
				return err
			}
			return cli.JSON(cmd.OutOrStdout(), info(sb))
		},
	}
}
