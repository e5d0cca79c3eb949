package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/spf13/cobra"
)

// TestRun holds what a command exits with, and that its error is one line.
func TestRun(t *testing.T) {
	for _, c := range []struct {
		err    error
		code   int
		stderr string
	}{
		{nil, 0, ""},
		{Status(7), 7, ""},
		{Usagef("bad %s", "flag"), ExitUsage, "prog: bad flag; see prog do --help\n"},
		{io.EOF, 125, "prog: EOF\n"},
		{errors.Join(io.EOF, io.ErrClosedPipe), 125, "prog: EOF; io: read/write on closed pipe\n"},
	} {
		var stderr bytes.Buffer
		root := &cobra.Command{Use: "prog"}
		root.SetErr(&stderr)
		root.AddCommand(&cobra.Command{Use: "do", RunE: func(*cobra.Command, []string) error { return c.err }})
		code := Run(context.Background(), root, []string{"do"}, func(command string) int {
			if command != "do" {
				t.Errorf("%v: failed is asked about %q", c.err, command)
			}
			return 125
		})
		if code != c.code || stderr.String() != c.stderr {
			t.Errorf("%v: %d, %q, want %d, %q", c.err, code, stderr.String(), c.code, c.stderr)
		}
	}
}
