package vmboot

import "testing"

func TestDoctorSaysWhatThereIs(t *testing.T) {
	seen := make(map[string]Check)
	for _, c := range Doctor(t.Context()) {
		if c.Detail == "" {
			t.Errorf("%s: no detail", c.Name)
		}
		seen[c.Name] = c
	}
	for name, needed := range map[string]bool{"qemu": true, "kernel": true, "agent": true, "kvm": false, "fuse": false} {
		if c, ok := seen[name]; !ok || c.Needed != needed {
			t.Errorf("%s: %+v, %v", name, c, ok)
		}
	}
}
