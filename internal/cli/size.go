package cli

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// maxMiB is more than anybody means.
const maxMiB = 1 << 20

// ParseMiB reads a flag's "512M", "2G" or number of MiB, which must be at least least.
func ParseMiB(flag, s string, least int) (int, error) {
	digits := strings.TrimRight(s, "bBiIkKmMgG")
	n, err := strconv.Atoi(digits)
	switch unit := strings.ToLower(s[len(digits):]); {
	case err != nil:
	case slices.Contains([]string{"", "m", "mb", "mib"}, unit):
	case slices.Contains([]string{"g", "gb", "gib"}, unit):
		n *= 1024
	default:
		err = errors.New("unknown unit")
	}
	if err != nil || n < least || n > maxMiB {
		return 0, Usagef("%s %q: use a size of at least %dM, such as 512M or 2G", flag, s, least)
	}
	return n, nil
}
