package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// nobody is the number of a user that owns nothing.
const nobody = 65534

// asUser is set in the environment of this test's own process that runs the scripts as an ordinary user.
const asUser = "MSB_E2E_AS_USER"

// TestScripts runs the programs by what a user would type: each file of testdata/script is one home, whose sandboxes the checks in it
// share. An ordinary user runs them in TestScriptsOrdinaryUser.
func TestScripts(t *testing.T) { runScripts(t) }

// TestScriptsOrdinaryUser runs the scripts in a process of nobody's.
func TestScriptsOrdinaryUser(t *testing.T) {
	needRoot(t)
	needVM(t)
	dir, err := os.MkdirTemp("", "msb-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(built.dir, "scripts.test")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &home{t: t, dir: dir, cred: &syscall.Credential{Uid: nobody, Gid: nobody},
		env: []string{asUser + "=" + built.dir, "TMPDIR=" + dir, "MSB_HOME="}}
	args := []string{"-test.run=^TestScripts$", "-test.timeout=9m"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := h.command(t.Context(), filepath.Base(program), args...)
	if cmd.Dir, err = os.Getwd(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else {
		t.Logf("%s", out)
	}
}

func runScripts(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	small := smallImage(t, s, testimage.Gzip)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "msb-")
			if err != nil {
				return err
			}
			h := &home{t: t, dir: dir}
			env.Defer(func() {
				// Whatever a script has left, or a failed one runs: nothing outlives it.
				for name := range strings.Lines(h.run(nil, "msb-launch", "ls", "-aq").stdout) {
					h.run(nil, "msb-launch", "rm", "-f", strings.TrimSpace(name))
				}
				if o := h.run(nil, "msb-fs", "stop"); o.code != 0 {
					t.Error(o)
				}
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
			port, err := freePort()
			if err != nil {
				return err
			}
			env.Setenv("MSB_HOME", dir)
			env.Setenv("PATH", built.dir+":"+env.Getenv("PATH"))
			env.Setenv("HOST", s.Host())
			env.Setenv("IMAGE", small)
			env.Setenv("PORT", strconv.Itoa(port))
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": exitStatus, "fetch": fetch},
	})
}

// exitStatus is `status N PROGRAM ARG...`: exec that wants an exit status.
func exitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit status %d, want %s", code, args[0])
	}
}

// fetch is `fetch URL`, which waits for a server that is about to listen, and prints what it says.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fetch URL")
	}
	for until := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		resp, err := http.Get(args[0])
		if err == nil {
			b, rerr := io.ReadAll(resp.Body)
			resp.Body.Close()
			if rerr == nil {
				ts.Check(os.WriteFile(ts.MkAbs("fetched"), b, 0o644))
				return
			}
			err = rerr
		}
		if time.Now().After(until) {
			ts.Fatalf("%v", err)
		}
	}
}

// freePort is a port of loopback that nobody listens on now.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}
