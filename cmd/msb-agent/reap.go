package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper waits for every child of process 1: those it started and the orphans of all others.
type reaper struct {
	mu    sync.Mutex // held from fork to entry in procs, so that no child is reaped before it is known
	procs map[int]chan syscall.WaitStatus
}

func newReaper() *reaper { return &reaper{procs: make(map[int]chan syscall.WaitStatus)} }

// start runs fork and returns the pid it gave and the channel that will carry how the process ended.
func (r *reaper) start(fork func() (int, error)) (int, <-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return 0, nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	r.procs[pid] = ended
	return pid, ended, nil
}

// signal sends sig to a process started here, unless it has been reaped and its number may be another's by now.
func (r *reaper) signal(pid int, sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.procs[pid]; ok {
		syscall.Kill(pid, sig)
	}
}

// loop reaps for as long as the machine runs.
func (r *reaper) loop() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		for r.reapOne() {
		}
		<-children
	}
}

// reapOne first peeks, so that the pid stays taken until the lock is held.
func (r *reaper) reapOne() bool {
	pid := zombie()
	if pid == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	if got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil); err != nil || got != pid {
		return err == nil || err == syscall.ECHILD || err == syscall.EINTR // somebody else's wait took it: look again
	}
	if ended, ok := r.procs[pid]; ok {
		delete(r.procs, pid)
		ended <- status
	}
	return true
}

// zombie returns the pid of a child that has ended and not been waited for, or 0.
func zombie() int {
	// siginfo_t of SIGCHLD (include/uapi/asm-generic/siginfo.h, 64-bit): si_pid follows three ints and padding.
	var info [128]byte
	_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
		unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(*(*int32)(unsafe.Pointer(&info[16])))
}
