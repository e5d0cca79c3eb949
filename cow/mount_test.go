package cow

import (
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// modes are the ways an upper can be kept.
var modes = map[string]Options{
	"root":      {},
	"user":      {noOwners: true},
	"wh-files":  {noDevices: true},
	"user-file": {noOwners: true, noDevices: true},
}

func TestPosix(t *testing.T) {
	for mode, o := range modes {
		t.Run(mode, func(t *testing.T) {
			for name, fn := range posixtest.All {
				if name == "FcntlFlockLocksFile" {
					// It wants a process's two descriptors to exclude each other, as go-fuse's own lock server has
					// it. POSIX locks belong to the process: the kernel's, and ours with them, do not.
					continue
				}
				t.Run(name, func(t *testing.T) {
					m := mount(t, sampleLower(), o)
					fn(t, m.path("empty")) // which the lower has
				})
			}
		})
	}
}

func TestSandboxExample(t *testing.T) {
	for mode, o := range modes {
		t.Run(mode, func(t *testing.T) {
			m := mount(t, sampleLower(), o)
			must(t, os.WriteFile(m.path("etc/new"), []byte("x\n"), 0o644))
			must(t, os.Remove(m.path("etc/debian_version")))
			must(t, os.Rename(m.path("opt"), m.path("opt2")))
			check := func() {
				t.Helper()
				wantFile(t, m.path("etc/new"), "x\n")
				wantFile(t, m.path("opt2/app/main.py"), "print(1)\n")
				wantFile(t, m.path("opt2/app/lib/b.py"), "b\n")
				wantAbsent(t, m.path("etc/debian_version"))
				wantAbsent(t, m.path("opt"))
			}
			check()
			before := snapshot(t, m.dir)
			m.remount()
			check()
			wantSame(t, before, snapshot(t, m.dir))

			// Another upper over the same lower sees none of it.
			other := mount(t, m.lower, o)
			wantFile(t, other.path("etc/debian_version"), "12.5\n")
			wantAbsent(t, other.path("etc/new"))
			wantFile(t, other.path("opt/app/main.py"), "print(1)\n")
		})
	}
}
