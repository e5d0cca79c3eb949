//go:build long

package e2e

import (
	"testing"

	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestMoreOddImages is TestOddImages with many more.
func TestMoreOddImages(t *testing.T) {
	needVM(t)
	dir, file, exe, link := testimage.Dir, testimage.File, testimage.Executable, testimage.Symlink
	etc := dir("etc", 0o755)
	type entries = []testimage.Entry
	runOdd(t, []oddImage{
		{name: "user by number", config: `{"User":"1234"}`, args: []string{"/busybox", "id"}, out: "uid=1234 gid=0 groups=0\n"},
		{name: "user and group by number", config: `{"User":"1234:55"}`, args: []string{"/busybox", "id"}, out: "uid=1234 gid=55 groups=55\n"},
		{name: "unknown user", config: `{"User":"ghost"}`, args: []string{"/busybox", "id"}, code: 126, out: `user "ghost"`},
		{name: "home of a number", entries: entries{etc, file("etc/passwd", "app:x:1234:5::/home/app:/x\n")}, config: `{"User":"1234"}`, args: []string{"/busybox", "sh", "-c", "echo $HOME; id -g"}, out: "/home/app\n5\n"},
		{name: "no command", config: `{}`, code: 125, out: "names no command"},
		{name: "no config at all", config: `null`, args: []string{"/busybox", "pwd"}, out: "/\n"},
		{name: "no config, no command", config: `null`, code: 125, out: "names no command"},
		{name: "shell form", entries: entries{dir("bin", 0o755), link("bin/sh", "/busybox")}, config: `{"Cmd":["/bin/sh","-c","echo a && echo $0 b"]}`, out: "a\n/bin/sh b\n"},
		{name: "read-only-looking directories", entries: entries{dir("srv", 0o555), dir("etc", 0o555), dir("proc", 0o555), dir("sys", 0o555), dir("dev", 0o555)},
			config: `{"WorkingDir":"/srv"}`, args: []string{"/busybox", "sh", "-c", "echo x > f && pwd && /busybox cat f"}, out: "/srv\nx\n"},
		{name: "missing interpreter", entries: entries{exe("entry", "#!/no/such\n")}, config: `{"Entrypoint":["/entry"]}`, code: 127, out: "interpreter"},
		{name: "script of a link", entries: entries{exe("opt/run.sh", "#!/busybox sh\necho \"$0 $*\"\n"), dir("usr", 0o755), link("usr/run", "../opt/run.sh")}, config: `{"Entrypoint":["run"],"Cmd":["x"],"Env":["PATH=/usr"]}`, out: "/usr/run x\n"},
		{name: "relative entrypoint", entries: entries{dir("app", 0o755), exe("app/go", "#!/busybox sh\npwd\n")}, config: `{"Entrypoint":["./go"],"WorkingDir":"/app"}`, out: "/app\n"},
		{name: "not for this user", entries: entries{exe("entry", "#!/busybox sh\n").Perm(0o700)}, config: `{"Entrypoint":["/entry"],"User":"5"}`, code: 126, out: "permission denied"},
		{name: "directory as command", entries: entries{dir("d", 0o755)}, config: `{"Entrypoint":["/d"]}`, code: 126, out: "directory"},
		{name: "another machine's program", entries: entries{exe("entry", "\x7fELF\x01\x01\x01")}, config: `{"Entrypoint":["/entry"]}`, code: 126, out: "not a program"},
		{name: "etc is a link", entries: entries{dir("real", 0o755), link("etc", "real")}, args: []string{"/busybox", "sh", "-c", "/busybox head -1 /real/hosts"}, config: `{}`, out: "127.0.0.1\tlocalhost\n"},
		{name: "dangling links of /etc", entries: entries{etc, link("etc/hosts", "/nowhere/deep/hosts"), link("etc/hostname", "loop"), link("etc/loop", "hostname")}, args: []string{"/busybox", "true"}, config: `{}`, out: ""},
		{name: "dev, proc and sys are links", entries: entries{link("dev", "/x"), link("proc", "y"), link("sys", "/etc")}, args: []string{"/busybox", "sh", "-c", "echo x > /dev/null; /busybox test -d /proc/self && echo ok"}, config: `{}`, out: "ok\n"},
		{name: "dev is a file", entries: entries{file("dev", ""), file("proc", "")}, args: []string{"/busybox", "sh", "-c", "echo x > /dev/null; /busybox test -d /proc/self && echo ok"}, config: `{}`, out: "ok\n"},
		{name: "run holds files", entries: entries{dir("run", 0o755), file("run/config", "kept\n")}, args: []string{"/busybox", "cat", "/run/config"}, config: `{}`, out: "kept\n"},
		{name: "working directory is a link", entries: entries{dir("real", 0o755), link("work", "/real")}, args: []string{"/busybox", "sh", "-c", "/busybox readlink -f ."}, config: `{"WorkingDir":"/work"}`, out: "/real\n"},
		{name: "empty strings", args: []string{"/busybox", "sh", "-c", "pwd"}, config: `{"Entrypoint":[],"Cmd":[],"Env":["EMPTY=","=odd","NOVALUE"],"User":"","WorkingDir":""}`, out: "/\n"},
		{name: "PATH finds in order", entries: entries{dir("a", 0o755), file("a/tool", ""), dir("b", 0o755), exe("b/tool", "#!/busybox sh\necho b\n")}, args: []string{"tool"}, config: `{"Env":["PATH=/none:/a:/b"]}`, out: "b\n"},
		{name: "onbuild and unknown fields", args: []string{"/busybox", "pwd"}, config: `{"OnBuild":["RUN x"],"Shell":["/x"],"ArgsEscaped":true,"Future":{"a":[1]}}`, out: "/\n"},
	})
}
