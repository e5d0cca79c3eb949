package vmboot

import (
	"context"
	"errors"
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
		works       bool
		err         error
		want        bool
		wantTries   int
		description string
	}{
		{"a", true, errors.New("interrupted"), false, 1, "an outcome that is none is not kept"},
		{"a", true, nil, true, 2, "tried"},
		{"a", false, nil, true, 2, "remembered"},
		{"b", false, nil, false, 3, "another host is tried again"},
		{"b", true, nil, false, 3, "a failure is remembered too"},
		{"a", true, nil, true, 4, "only the newest is kept"},
	} {
		p, err := remembered(t.Context(), file, step.key, try(step.works, step.err))
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
