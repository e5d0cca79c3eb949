package cli

import "testing"

func TestParseMiB(t *testing.T) {
	for in, want := range map[string]int{"512M": 512, "2G": 2048, "2GiB": 2048, "300": 300, "64mb": 64} {
		if got, err := ParseMiB("--memory", in, 64); err != nil || got != want {
			t.Errorf("ParseMiB(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "M", "1", "512K", "12x", "-5G", "99999999G"} {
		if got, err := ParseMiB("--memory", in, 64); err == nil {
			t.Errorf("ParseMiB(%q) = %d, want an error", in, got)
		}
	}
}
