package main

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// clockEvery is how often the clock is looked at.
	clockEvery = 5 * time.Second
	// clockSlack is more than two readings of a clock of whole seconds differ by.
	clockSlack = 2 * time.Second
)

// keepClock sets the clock forward when the host has been suspended, or this machine has been paused: its own clock stands still
// meanwhile, the hardware's does not. It goes by how both go on, not by what they show: a clock that somebody has set on purpose is left
// alone. It returns where there is no hardware clock.
func keepClock() {
	rtc, err := os.Open("/dev/rtc0")
	if err != nil {
		return
	}
	defer rtc.Close()
	start, err := hardwareClock(rtc)
	if err != nil {
		return
	}
	since := time.Now()
	for {
		time.Sleep(clockEvery)
		now, err := hardwareClock(rtc)
		if err != nil {
			return
		}
		// time.Since goes by the monotonic clock, which nobody sets.
		missed := now.Sub(start) - time.Since(since)
		start, since = now, time.Now()
		if missed > clockSlack {
			tv := syscall.NsecToTimeval(time.Now().Add(missed).UnixNano())
			syscall.Settimeofday(&tv)
		}
	}
}

// hardwareClock reads rtc, which shows UTC (rtc(4)).
func hardwareClock(rtc *os.File) (time.Time, error) {
	t, err := unix.IoctlGetRTCTime(int(rtc.Fd()))
	if err != nil {
		return time.Time{}, err
	}
	return time.Date(int(t.Year)+1900, time.Month(t.Mon+1), int(t.Mday), int(t.Hour), int(t.Min), int(t.Sec), 0, time.UTC), nil
}
