package main

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// nap sleeps in the kernel; what is left after an interruption is slept too. The kernel takes
// the call up again by itself after a stop.
func nap(length time.Duration) {
	left := syscall.NsecToTimespec(length.Nanoseconds())
	for {
		_, _, errno := syscall.Syscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&left)), uintptr(unsafe.Pointer(&left)), 0)
		if errno != syscall.EINTR {
			return
		}
		interrupted.Add(1)
	}
}

// beat measures, at 1 kHz, for how long its thread did not run although it should.
func beat(longest *atomic.Int64) {
	const period = time.Millisecond
	runtime.LockOSThread()
	last := time.Now()
	for {
		nap(period)
		now := time.Now()
		raise(longest, (now.Sub(last) - period).Nanoseconds())
		last = now
	}
}
