package vmboot

import "testing"

func TestNewestKernelIsTaken(t *testing.T) {
	for _, c := range []struct {
		packages []string
		want     string
	}{
		{nil, ""},
		{[]string{"linux-image-6.1.0-56-cloud-amd64", "linux-image-cloud-amd64"}, ""},
		{[]string{"linux-image-6.12-cloud-amd64"}, ""},
		{[]string{"linux-image-6.12.9+bpo-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64", "linux-image-6.12.100+deb12-cloud-amd64"}, "linux-image-6.12.117+deb12-cloud-amd64"},
		{[]string{"linux-image-6.12.117+deb12-cloud-amd64-dbg", "linux-image-6.12.117+deb12-cloud-amd64-unsigned"}, ""},
		{[]string{"linux-image-6.12.117+deb12-amd64", "linux-image-6.16.3+deb13-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64"}, "linux-image-6.16.3+deb13-cloud-amd64"},
	} {
		if got := newestOf(c.packages); got != c.want {
			t.Errorf("newestOf(%q) = %q, want %q", c.packages, got, c.want)
		}
	}
}
