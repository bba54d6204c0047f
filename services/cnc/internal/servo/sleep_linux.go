package servo

import (
	"syscall"
	"time"
)

// The Go timers wait in epoll, whose resolution is a millisecond: useless for a
// loop of one millisecond. The loop owns its thread, so it may sleep in the
// kernel, with the thread's timer slack (50 us by default) turned off.
func prepareThread() {
	const setTimerSlack = 29
	syscall.RawSyscall(syscall.SYS_PRCTL, setTimerSlack, 1, 0)
}

func sleepUntil(deadline time.Time) {
	for {
		d := time.Until(deadline)
		if d <= 0 {
			return
		}
		// A signal ends the sleep early; what is left is computed anew.
		ts := syscall.NsecToTimespec(int64(d))
		_ = syscall.Nanosleep(&ts, nil)
	}
}
