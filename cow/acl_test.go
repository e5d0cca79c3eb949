package cow

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestACL does the same on the mount and on the host's own file system.
func TestACL(t *testing.T) {
	none := ^uint32(0)
	rich := acl{{aclUserObj, 7, none}, {aclUser, 6, 1234}, {aclGroupObj, 5, none}, {aclMask, 6, none}, {aclOther, 4, none}}.bytes()
	plain := acl{{aclUserObj, 6, none}, {aclGroupObj, 4, none}, {aclOther, 0, none}}.bytes()
	run := func(dir string) (out []string) {
		look := func(name string) {
			line := name
			var st unix.Stat_t
			must(t, unix.Lstat(dir+"/"+name, &st))
			line += fmt.Sprintf(" %o", st.Mode)
			for _, attr := range []string{xattrACL, xattrDefaultACL} {
				buf := make([]byte, 256)
				n, err := unix.Lgetxattr(dir+"/"+name, attr, buf)
				line += fmt.Sprintf(" %x %v", buf[:max(n, 0)], err)
			}
			out = append(out, line)
		}
		must(t, os.WriteFile(dir+"/f", nil, 0o644))
		must(t, unix.Setxattr(dir+"/f", xattrACL, rich, 0))
		look("f")
		must(t, unix.Chmod(dir+"/f", 0o750))
		look("f")
		must(t, unix.Setxattr(dir+"/f", xattrACL, plain, 0))
		look("f")
		must(t, os.Mkdir(dir+"/d", 0o755))
		must(t, unix.Setxattr(dir+"/d", xattrDefaultACL, rich, 0))
		must(t, os.WriteFile(dir+"/d/f", nil, 0o666))
		must(t, os.Mkdir(dir+"/d/sub", 0o777))
		must(t, unix.Mknod(dir+"/d/fifo", unix.S_IFIFO|0o640, 0))
		for _, name := range []string{"d", "d/f", "d/sub", "d/fifo"} {
			look(name)
		}
		must(t, unix.Removexattr(dir+"/d", xattrDefaultACL))
		must(t, os.WriteFile(dir+"/d/g", nil, 0o666))
		look("d")
		look("d/g")
		return out
	}
	host := t.TempDir()
	if err := unix.Setxattr(host, xattrDefaultACL, rich, 0); err != nil {
		t.Skipf("no ACLs on the host to compare with: %v", err)
	}
	must(t, unix.Removexattr(host, xattrDefaultACL))
	want := run(host)
	for mode, o := range modes {
		t.Run(mode, func(t *testing.T) {
			m := mount(t, sampleLower(), o)
			for i, got := range run(m.path("empty")) {
				if got != want[i] {
					t.Errorf("got  %s\nwant %s", got, want[i])
				}
			}
		})
	}
}
