package vmboot

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestClockAfterPause stops the machine as the host's being suspended does: a while after it goes on, its clock is right again.
func TestClockAfterPause(t *testing.T) {
	vm, agent := boot(t, testConfig(t), Setup{})
	behind := func() time.Duration {
		seconds, err := strconv.ParseInt(strings.TrimSpace(sh(t, agent, "date +%s").out), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Since(time.Unix(seconds, 0))
	}
	behind() // an answer says that the machine is set up, its clock too
	for _, command := range []string{"qmp_capabilities", "stop"} {
		if _, err := vm.monitor.(*qmp).run(command); err != nil {
			t.Fatal(err)
		}
	}
	const pause = 5 * time.Second
	time.Sleep(pause)
	if _, err := vm.monitor.(*qmp).run("cont"); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(time.Minute); behind() > pause/2; time.Sleep(time.Second) {
		if time.Now().After(until) {
			t.Fatalf("the clock is %v behind", behind())
		}
	}
	if b := behind(); b < -pause/2 {
		t.Errorf("the clock is %v ahead", -b)
	}
}
