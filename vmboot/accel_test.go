package vmboot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestProbeIsMadeOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "accel.json")
	tries := 0
	try := func(works bool, err error) func(context.Context) (Probe, error) {
		return func(context.Context) (Probe, error) {
			tries++
			return Probe{Accel: AccelKVM, Works: works}, err
		}
	}
	for _, step := range []struct {
		key         string
		insist      bool
		works       bool
		err         error
		want        bool
		wantTries   int
		description string
	}{
		{"a", false, true, errors.New("interrupted"), false, 1, "an outcome that is none is not kept"},
		{"a", false, true, nil, true, 2, "tried"},
		{"a", false, false, nil, true, 2, "remembered"},
		{"b", false, false, nil, false, 3, "another host is tried again"},
		{"b", false, true, nil, false, 3, "a failure is remembered too"},
		{"b", true, false, nil, false, 4, "who insists has a failure tried again"},
		{"b", true, true, nil, true, 5, "and again"},
		{"b", true, false, nil, true, 5, "but not a success"},
		{"b", false, false, nil, true, 5, "what the others then hear of"},
		{"a", false, true, nil, true, 6, "only the newest is kept"},
	} {
		p, err := remembered(t.Context(), file, step.key, step.insist, try(step.works, step.err))
		if !errors.Is(err, step.err) || (err == nil && p.Works != step.want) || tries != step.wantTries {
			t.Errorf("%s: %v, %v after %d tries", step.description, p.Works, err, tries)
		}
	}
}

func TestProbeTCG(t *testing.T) {
	c := testConfig(t)
	p, err := ProbeAccel(t.Context(), AccelTCG, c.Kernel)
	if err != nil || !p.Works {
		t.Errorf("emulation, which works everywhere, does not: %+v, %v", p, err)
	}
}

func TestAcceleratorWanted(t *testing.T) {
	for want, ok := range map[string]bool{"tcg": true, "xen": false} {
		got, err := Accelerator(t.Context(), want, nil)
		if (err == nil) != ok || (ok && got != want) {
			t.Errorf("%s: %q, %v", want, got, err)
		}
	}
}

func TestIdentityFollowsTheKernel(t *testing.T) {
	if _, err := findQEMU(""); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "vmlinux")
	seen := map[string]bool{}
	for _, content := range []string{"one", "other one"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		first, err := Identity(&Kernel{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Identity(&Kernel{Path: path}); err != nil || again != first || seen[first] {
			t.Errorf("%q and %q, %v; before %v", first, again, err, seen)
		}
		seen[first] = true
	}
}
