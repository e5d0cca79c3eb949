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

// clock sees when this machine has stood still: its own clock does meanwhile, the hardware's does not.
type clock struct {
	rtc    *os.File
	shown  time.Time // by the hardware, when it was last looked at
	looked time.Time // with the monotonic clock, which nobody sets
}

// newClock looks at both clocks; nil where there is no hardware clock.
func newClock() *clock {
	rtc, err := os.Open("/dev/rtc0")
	if err != nil {
		return nil
	}
	shown, err := hardwareClock(rtc)
	if err != nil {
		rtc.Close()
		return nil
	}
	return &clock{rtc, shown, time.Now()}
}

// keep sets the clock forward when the host has been suspended, or this machine has been paused. It goes by how both go on, not by what
// they show: a clock that somebody has set on purpose is left alone. It returns when there is nothing to look at.
func (c *clock) keep() {
	if c == nil {
		return
	}
	defer c.rtc.Close()
	for {
		time.Sleep(clockEvery)
		now, err := hardwareClock(c.rtc)
		if err != nil {
			return
		}
		missed := now.Sub(c.shown) - time.Since(c.looked)
		c.shown, c.looked = now, time.Now()
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
