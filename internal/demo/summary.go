package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// quoted joins arguments as one would type them.
func quoted(args []string) string {
	var out []string
	for _, a := range args {
		if strings.ContainsAny(a, " \t\"'$&|;()<>") {
			a = strconv.Quote(a)
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// printSummary sets the trials side by side.
func printSummary(w io.Writer, all []result) {
	fmt.Fprintf(w, "\n%-28s %12s %24s %14s %12s\n", "", "first output", "fetched by then", "all of it here", "again")
	for _, r := range all {
		ms, fetched, _ := r.cold.at("first output")
		again, _, _ := r.warm.at("first output")
		part := "-"
		if r.cold.ImageBytes > 0 {
			part = fmt.Sprintf("%.1f of %.1f MB (%.0f %%)", float64(fetched)/1e6, float64(r.cold.ImageBytes)/1e6,
				100*float64(fetched)/float64(r.cold.ImageBytes))
		}
		fmt.Fprintf(w, "%-28s %10.2f s %24s %12.1f s %10.2f s\n", r.title, ms/1000, part, r.complete.Seconds(), again/1000)
	}
}
