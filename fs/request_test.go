package fs

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A signal that does not kill is nothing to whoever waits for a file; one that does ends the wait.
func TestSignals(t *testing.T) {
	needMount(t)
	l := streamLayer(file("first", "1"), file("late", "x"))
	tree := newTree(t, Options{}, l)
	l.show(1)
	dir := mountTree(t, tree)
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		killed bool
	}{{"fatal", syscall.SIGTERM, true}, {"trapped", syscall.SIGUSR1, false}} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("perl", "-e", `$SIG{USR1} = sub {}; $| = 1; print "go\n"; open(F, "<", $ARGV[0]) or die "open: $!"; print <F>`, dir+"/late")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Skipf("needs perl: %v", err)
			}
			buf := make([]byte, 100)
			n, _ := out.Read(buf)
			time.Sleep(50 * time.Millisecond) // until it waits in open
			if err := cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			if !c.killed {
				time.Sleep(3 * killPoll)
				l.show(2)
				l.end()
			}
			for {
				m, err := out.Read(buf[n:])
				n += m
				if err != nil {
					break
				}
			}
			err = cmd.Wait()
			if got := string(buf[:n]); c.killed == (err == nil) || !c.killed && !strings.HasSuffix(got, "x") {
				t.Errorf("it wrote %q and ended with %v", got, err)
			}
		})
	}
}
