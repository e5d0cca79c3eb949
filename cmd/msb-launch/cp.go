package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/cli"
)

func (a *app) cpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy files into a sandbox that runs, or out of it; one of SRC and DST is NAME:PATH",
		Long: "Copy files into a sandbox that runs, or out of it: into DST where that is a directory, else in its place. A SRC that ends in\n" +
			"/. is what the directory contains. - is a tar stream on standard input or output.",
		Example: "  msb-launch cp ./input worker:/srv/\n  msb-launch cp worker:/var/log/app.log .\n  msb-launch cp worker:/etc - | tar t",
		Args:    cli.Args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, src := splitPath(args[0])
			to, dst := splitPath(args[1])
			if (from == "") == (to == "") {
				return cli.Usagef("one of SRC and DST must be in a sandbox, as NAME:PATH, and the other here")
			}
			if src == "" || dst == "" {
				return cli.Usagef("a path is missing: NAME:/ is all of a sandbox")
			}
			host, err := a.host()
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			sb, err := host.Get(from + to)
			if err != nil {
				return err
			}
			switch {
			case dst == "-":
				return sb.CopyOutTar(ctx, src, cmd.OutOrStdout())
			case src == "-":
				return sb.CopyInTar(ctx, cmd.InOrStdin(), dst)
			case from != "":
				return sb.CopyOut(ctx, src, dst)
			default:
				return sb.CopyIn(ctx, src, dst)
			}
		},
	}
}

// splitPath splits NAME:PATH; a path with a slash before the colon is one here.
func splitPath(arg string) (name, path string) {
	name, path, found := strings.Cut(arg, ":")
	if !found || strings.ContainsRune(name, '/') {
		return "", arg
	}
	return name, path
}
