// Package cli is what the command lines have in common: their flags, how they find the daemon, how they print, and what
// they exit with.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/microsandbox/msb-fs/internal/api"
)

// Exit statuses, beside those of the commands that are run.
const (
	ExitFailed = 1
	ExitUsage  = 2
)

// Status is an error that says nothing and exits with its number: a command's own status.
type Status int

func (s Status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Usagef is an error in how a command was called.
func Usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Args makes a command's check of its arguments a usage error.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// Line is err on one line: joined errors have one each.
func Line(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// Run executes root with args and returns what the process exits with; failed tells that of errors which are not the
// command's own and not in its call, by the command's name.
func Run(ctx context.Context, root *cobra.Command, args []string, failed func(command string) int) int {
	root.SetArgs(args)
	root.SilenceErrors, root.SilenceUsage = true, true
	completeAll(root)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.Args = Args(cobra.NoArgs)
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd, err := root.ExecuteContextC(ctx)
	var status Status
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		fmt.Fprintf(root.ErrOrStderr(), "%s: %s; see %s --help\n", root.Name(), Line(err), cmd.CommandPath())
		return ExitUsage
	case errors.Is(err, context.Canceled): // by a signal: nothing else cancels a command
		fmt.Fprintf(root.ErrOrStderr(), "%s: interrupted\n", root.Name())
		return failed(cmd.Name())
	default:
		fmt.Fprintf(root.ErrOrStderr(), "%s: %s\n", root.Name(), Line(err))
		return failed(cmd.Name())
	}
}

func completeAll(cmd *cobra.Command) {
	CompleteChoices(cmd)
	for _, c := range cmd.Commands() {
		completeAll(c)
	}
}

// Common are the flags of every command.
type Common struct {
	HomeDir  string
	LogLevel string
	Quiet    bool
}

// Register adds the flags to f.
func (c *Common) Register(f *pflag.FlagSet) {
	f.StringVar(&c.HomeDir, "home", "", "directory of cache, sandboxes and config.json (default $MSB_HOME, else ~/.microsandbox)")
	Choice(f, &c.LogLevel, "log-level", "what a daemon that this command starts will log: debug, info, warn or error", "info", "debug", "warn", "error")
	f.BoolVarP(&c.Quiet, "quiet", "q", false, "print no progress and no notes")
}

// Home is the chosen home directory.
func (c *Common) Home() (api.Home, error) { return api.FindHome(c.HomeDir) }

// Connect returns a client of the home's daemon, started if need be. The caller closes it.
func (c *Common) Connect(ctx context.Context) (*api.Client, error) {
	home, err := c.Home()
	if err != nil {
		return nil, err
	}
	client, err := api.Connect(ctx, home, "--log-level", c.LogLevel)
	if err == nil && !c.Quiet {
		client.Waiting = func(w api.Wait) { fmt.Fprintln(os.Stderr, Line(errors.New(w.String()))) }
	}
	return client, err
}

// Notef tells the user something that is not data.
func (c *Common) Notef(cmd *cobra.Command, format string, args ...any) {
	if !c.Quiet {
		fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...)
	}
}

// Output is how a command prints what programs may want to parse.
type Output struct {
	json   bool
	format string
}

// Register adds the flags to f.
func (o *Output) Register(f *pflag.FlagSet) {
	f.BoolVar(&o.json, "json", false, "print JSON")
	Choice(f, &o.format, "format", "text or json", "text", "json")
}

// Print writes v as JSON, or what text prints.
func (o *Output) Print(w io.Writer, v any, text func(io.Writer) error) error {
	if o.json || o.format == "json" {
		return JSON(w, v)
	}
	return text(w)
}

// JSON prints v for people and programs.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// IsTerminal tells whether w is one.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isTerminal(int(f.Fd()))
}
