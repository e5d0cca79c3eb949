// Command bench measures how fast a container image really starts, ours beside what people use today, cold and warm:
//
//	go run ./bench setup          what it needs: Debian packages, images in every form
//	go run ./bench run            cold starts, over links of chosen speed; continues where it was interrupted
//	go run ./bench report DIR     the pictures of a results directory, as one HTML file
//	go run ./bench table DIR      its Markdown table
//	go run ./bench quick          whether starts have become slower
//
// Everything is wiped before each cold run, and the order is interleaved: one run of everything, then the next, so that what
// else the machine does hits all alike. README.md says what is measured and what the lines of results mean.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := cli.Run(ctx, newRoot(), os.Args[1:], func(string) int { return cli.ExitFailed })
	stop()
	os.Exit(status)
}

// newRoot is the command line. Each subject's command is made in its own file.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "bench",
		Short: "Measure how fast container images start, cold and warm",
	}
	root.AddCommand(setupCommand(), runCommand(), quickCommand(), replayCommand(), predictCommand(), bulkCommand(), warmCommand(), guestCommand(), sandboxesCommand(), reportCommand(), tableCommand(), readmeCommand(), cowCommand())
	return root
}
