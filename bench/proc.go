package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// adopt makes this process the parent of whatever its descendants leave behind (prctl(2), PR_SET_CHILD_SUBREAPER), so that
// daemons are counted with what started them, and none outlives a run.
func adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphaned processes: %w", err)
	}
	return nil
}

// process is what /proc says of one.
type process struct {
	pid, parent int
	name        string
	state       byte
	cpu         time.Duration // of its own, and of the children it has waited for
	rss         int64         // bytes, without shared memory: a guest's memory is mapped by more than one
	shared      int64
}

// clockTick is the unit of times in /proc/PID/stat; USER_HZ is 100 on every architecture (proc(5)).
const clockTick = time.Second / 100

// descendants are the processes that descend from this one.
func descendants() []process {
	dir, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]process{}
	for _, e := range dir {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	var all []process
	for queue := []int{os.Getpid()}; len(queue) > 0; queue = queue[1:] {
		for _, p := range children[queue[0]] {
			all = append(all, p)
			queue = append(queue, p.pid)
		}
	}
	return all
}

// readProcess reads /proc/PID/stat (proc(5)); false when the process has gone.
func readProcess(pid int) (process, bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	open, end := bytes.IndexByte(raw, '('), bytes.LastIndexByte(raw, ')')
	if open < 0 || end < open {
		return process{}, false
	}
	f := strings.Fields(string(raw[end+1:]))
	if len(f) < 15 {
		return process{}, false
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
	return process{
		pid: pid, parent: int(number(1)), name: string(raw[open+1 : end]), state: f[0][0],
		cpu: time.Duration(number(11)+number(12)+number(13)+number(14)) * clockTick,
	}, true
}

// readMemory fills in what /proc/PID/status says of memory.
func (p *process) readMemory() {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch key {
		case "RssAnon", "RssFile":
			p.rss += kb << 10
		case "RssShmem":
			p.shared = kb << 10
		}
	}
}

// meter adds up what the descendants of this process use. Stop it.
type meter struct {
	base time.Duration // what had been used before
	quit chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex
	peaks map[string]int64 // bytes, by the name of the program
	total int64            // bytes, of all at the same time
}

// startMeter begins to count.
func startMeter() *meter {
	m := &meter{base: cpuOfAll(), quit: make(chan struct{}), peaks: map[string]int64{}}
	m.done.Go(func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-m.quit:
				tick.Stop()
				return
			case <-tick.C:
				m.look()
			}
		}
	})
	return m
}

// look notes how much memory everybody has now.
func (m *meter) look() {
	now := map[string]int64{}
	var sum, shared int64
	for _, p := range descendants() {
		p.readMemory()
		now[p.name] += p.rss + p.shared
		sum += p.rss
		shared = max(shared, p.shared)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for n, b := range now {
		m.peaks[n] = max(m.peaks[n], b)
	}
	m.total = max(m.total, sum+shared)
}

// cpu is what has been used since the meter was started.
func (m *meter) cpu() time.Duration { return cpuOfAll() - m.base }

// stop ends the counting and returns the peaks, in bytes: of each program, and of all together.
func (m *meter) stop() (map[string]int64, int64) {
	m.look()
	close(m.quit)
	m.done.Wait()
	return maps.Clone(m.peaks), m.total
}

// cpuOfAll is the processor time of every descendant, dead or alive.
func cpuOfAll() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u); err != nil {
		return 0
	}
	sum := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	for _, p := range descendants() {
		sum += p.cpu
	}
	return sum
}

// endAll ends every descendant that is left, and waits until they are gone. There must be none that somebody else waits for.
func endAll() error {
	deadline := time.Now().Add(10 * time.Second)
	for signal := syscall.SIGTERM; ; {
		left := descendants()
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s (%d) does not end", left[0].name, left[0].pid)
		}
		if time.Until(deadline) < 7*time.Second {
			signal = syscall.SIGKILL
		}
		for _, p := range left {
			if p.state != 'Z' {
				if err := syscall.Kill(p.pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("end %s (%d): %w", p.name, p.pid, err)
				}
			}
			var status syscall.WaitStatus
			syscall.Wait4(p.pid, &status, syscall.WNOHANG, nil) // of those that are ours by now; the others have a parent that waits
		}
		time.Sleep(50 * time.Millisecond)
	}
}
