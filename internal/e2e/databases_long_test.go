//go:build long

package e2e

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestSQLiteInKilledVM kills a microVM, as kill -9 does, while a database in it is written to: what was committed is there
// in the next, and the database is whole.
func TestSQLiteInKilledVM(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref, _ := pythonImage(t, s, testimage.Gzip)
	h := newHome(t)
	h.must("msb-launch", "create", "--name", "db", "--insecure", ref, "sleep", "100000")
	for i, mode := range []string{"delete", "wal"} {
		h.must("msb-launch", "start", "db")
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cmd := h.command(ctx, "msb-launch", "exec", "db", "python3", "-c", sqliteWriter, mode)
		out, err := cmd.StdoutPipe()
		noError(t, err)
		noError(t, cmd.Start())
		last := 0
		lines := bufio.NewScanner(out)
		for n := 0; n < 20*(i+1) && lines.Scan(); n++ {
			fmt.Sscan(lines.Text(), &last)
		}
		pid := h.machine(t, "db")
		noError(t, syscall.Kill(pid, syscall.SIGKILL))
		for lines.Scan() {
			fmt.Sscan(lines.Text(), &last)
		}
		cmd.Wait()
		cancel()
		h.run(nil, "msb-launch", "stop", "db") // it is gone, but may still be said to be up
		h.must("msb-launch", "start", "db")
		var state string
		var rows int
		said := h.must("msb-launch", "exec", "db", "python3", "-c", sqliteCheck)
		fmt.Sscan(said, &state, &rows)
		if state != "ok" || rows < last || last == 0 {
			t.Errorf("%s: after a kill the database is %q, %d rows had been committed", mode, said, last)
		}
		h.must("msb-launch", "stop", "db")
	}
	h.must("msb-launch", "rm", "db")
}

// machine is the process of a sandbox's virtual machine: a child of what keeps the sandbox.
func (h *home) machine(t *testing.T, name string) (pid int) {
	t.Helper()
	var info struct {
		State struct {
			PID int `json:"pid"`
		} `json:"state"`
	}
	noError(t, json.Unmarshal([]byte(h.must("msb-launch", "inspect", name)), &info))
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", info.State.PID))
	noError(t, err)
	for _, file := range children {
		pids, _ := os.ReadFile(file)
		for _, child := range strings.Fields(string(pids)) {
			if comm, _ := os.ReadFile("/proc/" + child + "/comm"); strings.HasPrefix(string(comm), "qemu-system") {
				fmt.Sscan(child, &pid)
				return pid
			}
		}
	}
	t.Fatalf("sandbox %s, kept by process %d, has no machine", name, info.State.PID)
	return 0
}

// pgCheck prints "t" if the books of pgbench balance.
const pgCheck = `select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
	and (select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history)
	and (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) from pgbench_tellers)
	and (select count(*) from pgbench_history) > 0`

func TestPostgreSQL(t *testing.T) {
	needRoot(t)
	s := serve(t, registry.Options{})
	ref, _ := pythonImage(t, s, testimage.Gzip)
	w := &writable{t: t, h: newHome(t), ref: ref, mnt: t.TempDir(), upper: t.TempDir()}
	w.mount()
	t.Cleanup(func() { w.h.must("msb-fs", "umount", w.mnt) })
	w.postgres(t)
}

// postgres runs a database server of this host, as an ordinary user, on the mount: by itself, after it was stopped at once,
// and after the daemon was killed.
func (w *writable) postgres(t *testing.T) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("postgresql is not installed")
	}
	noError(t, os.Chmod(filepath.Dir(w.mnt), 0o755)) // temporary directories of tests are their user's alone
	sock, err := os.MkdirTemp("", "pg")
	noError(t, err)
	defer os.RemoveAll(sock)
	noError(t, os.Chown(sock, 65534, 65534))
	env := []string{"PATH=" + filepath.Dir(found[0]) + ":" + os.Getenv("PATH"), "SOCK=" + sock, "PGHOST=" + sock, "PGUSER=nobody",
		"DATA=" + w.mnt + "/var/lib/pg", "SECONDS_OF_LOAD=" + cmp.Or(os.Getenv("MSB_PGBENCH_SECONDS"), "6"), "HOME=" + sock, "CHECK=" + pgCheck}
	const server = `as() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
		start() { as pg_ctl -s -D "$DATA" -w -t 120 -l "$SOCK/log" -o "-k $SOCK -c listen_addresses=" start || { cat "$SOCK/log"; exit 1; }; }
		check() { test "$(as psql -Atc "$CHECK" postgres)" = t; }
		cd /
		`
	w.sh(t, "", server+`mkdir -m 700 "$DATA"; chown 65534:65534 "$DATA"
		as initdb -A trust --no-locale -E UTF8 -D "$DATA"; start
		as pgbench -q -i -s 2 postgres; as pgbench -T "$SECONDS_OF_LOAD" -c 4 -N postgres; as pgbench -T 2 -c 2 postgres
		as psql -Atc 'vacuum full' postgres
		as pg_ctl -s -D "$DATA" -m immediate stop; start
		as psql -Atc 'truncate pgbench_history; update pgbench_accounts set abalance = 0; update pgbench_tellers set tbalance = 0; update pgbench_branches set bbalance = 0' postgres
		as pgbench -n -T 2 -c 2 postgres; check`, env...)

	load := exec.Command("sh", "-c", server+`as pgbench -n -T 60 -c 4 postgres`)
	load.Env = append(os.Environ(), env...)
	noError(t, load.Start())
	w.sh(t, "", server+`was=$(as psql -Atc 'select count(*) from pgbench_history' postgres)
		until [ "$(as psql -Atc 'select count(*) from pgbench_history' postgres)" -gt $((was + 100)) ]; do sleep 0.1; done`, env...)
	pids, err := os.ReadFile(w.mnt + "/var/lib/pg/postmaster.pid")
	noError(t, err)
	noError(t, syscall.Kill(w.h.status().PID, syscall.SIGKILL))
	load.Wait()
	var postmaster int
	fmt.Sscan(strings.Fields(string(pids))[0], &postmaster)
	syscall.Kill(postmaster, syscall.SIGKILL) // it may have gone by itself, and its children go when it has
	w.h.must("msb-fs", "umount", w.mnt)
	w.mount()
	w.sh(t, "", server+`rm -f "$DATA/postmaster.pid" "$SOCK"/.s.PGSQL.*; start; check; as pg_ctl -s -D "$DATA" -m fast stop; rm -r "$DATA"`, env...)
}
