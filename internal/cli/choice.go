package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Choice adds a flag that is one of values; the first is what it is unless it is given.
func Choice(f *pflag.FlagSet, into *string, name, usage string, values ...string) {
	*into = values[0]
	f.Var(&choice{into, values}, name, usage)
}

// choice is a flag's value that is refused before anything is done.
type choice struct {
	into   *string
	values []string
}

func (c *choice) String() string { return *c.into }
func (c *choice) Type() string   { return "string" }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.values, s) {
		return fmt.Errorf("use %s", strings.Join(c.values, ", "))
	}
	*c.into = s
	return nil
}

// CompleteChoices lets the shell complete the values of cmd's Choice flags.
func CompleteChoices(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if c, ok := f.Value.(*choice); ok {
			// It fails only where the flag has a completion already.
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(c.values, cobra.ShellCompDirectiveNoFileComp))
		}
	})
}
