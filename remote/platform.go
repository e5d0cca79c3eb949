package remote

import (
	"fmt"
	"runtime"
	"strings"
)

// platform is what an image runs on, as an OCI image index spells it.
type platform struct{ OS, Architecture, Variant string }

// hostPlatform is this machine with Linux, which is what sandboxes run.
func hostPlatform() platform {
	p := platform{OS: "linux", Architecture: runtime.GOARCH}
	switch runtime.GOARCH {
	case "arm64":
		p.Variant = "v8"
	case "arm":
		p.Variant = "v7"
	}
	return p
}

// parsePlatform reads os/arch[/variant]; "" is the host's.
func parsePlatform(s string) (platform, error) {
	if s == "" {
		return hostPlatform(), nil
	}
	part := strings.Split(strings.ToLower(s), "/")
	if len(part) < 2 || len(part) > 3 {
		return platform{}, fmt.Errorf("platform %q is not os/arch[/variant], as in linux/arm64/v8", oneLine(s))
	}
	for _, p := range part {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
			return platform{}, fmt.Errorf("platform %q is not os/arch[/variant], as in linux/arm64/v8", oneLine(s))
		}
	}
	// What uname and packagers call them.
	switch part[1] {
	case "x86_64", "x86-64":
		part[1] = "amd64"
	case "aarch64":
		part[1] = "arm64"
	}
	p := platform{OS: part[0], Architecture: part[1]}
	if len(part) == 3 {
		p.Variant = part[2]
	}
	return p.normal(), nil
}

// normal makes arm64 and arm64/v8 the same, as they are.
func (p platform) normal() platform {
	if p.Architecture == "arm64" && p.Variant == "" {
		p.Variant = "v8"
	}
	return p
}

func (p platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" && (p.Architecture != "arm64" || p.Variant != "v8") {
		s += "/" + p.Variant
	}
	return s
}

// fit says how well an image for have runs on p: 0 not at all, otherwise more is better.
func (p platform) fit(have platform) int {
	p, have = p.normal(), have.normal()
	switch {
	case p.OS != have.OS || p.Architecture != have.Architecture:
		return 0
	case p.Variant == have.Variant:
		return 100
	case have.Variant == "":
		return 50
	case p.Variant == "":
		// The plainest of what there is: a baseline machine may not run the others.
		return 40 - int(have.Variant[len(have.Variant)-1])%10
	case p.Architecture == "arm" || p.Architecture == "amd64":
		// Variants are ordered, and a later one runs what was made for an earlier one.
		if have.Variant < p.Variant {
			return 10 + int(have.Variant[len(have.Variant)-1]%10)
		}
	}
	return 0
}
