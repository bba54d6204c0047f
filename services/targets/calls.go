package main

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

const interval = 15 * time.Millisecond

// timeout is not on a stack, which may move.
var timeout = syscall.NsecToTimespec(interval.Nanoseconds())

// waitInAllWays has a thread in each call that the kernel does not take up again after a
// stop, or takes up in its own way. What ends early must say EINTR.
func waitInAllWays() {
	const (
		length               = interval
		futex, semtimedop    = 202, 220
		semget, ioSetup      = 64, 206
		ioGetevents          = 208
		timerfdCreate, timer = 283, 286
		clockNanosleep       = 230
		poll, epollPwait     = 7, 281
		sigtimedwait         = 128
	)
	span := uintptr(unsafe.Pointer(&timeout))
	call := func(number uintptr, arguments ...uintptr) (uintptr, syscall.Errno) {
		var all [6]uintptr
		copy(all[:], arguments)
		result, _, errno := syscall.Syscall6(number, all[0], all[1], all[2], all[3], all[4], all[5])
		return result, errno
	}
	// keep runs a call in a thread of its own; early says that it may not end before its time.
	keep := func(name string, expected syscall.Errno, wait func() (uintptr, syscall.Errno)) {
		go func() {
			runtime.LockOSThread()
			for {
				began := time.Now()
				_, errno := wait()
				took := time.Since(began)
				switch {
				case errno == syscall.EINTR:
					interrupted.Add(1)
				case errno != expected:
					fault("%s: %v instead of %v", name, errno, expected)
					time.Sleep(time.Second)
				// The kernel's clock of some of them is coarse.
				case took < length-5*time.Millisecond:
					fault("%s ended after %v of %v, without EINTR", name, took, length)
				}
				beats.Add(1)
			}
		}()
	}
	must := func(name string, result uintptr, errno syscall.Errno) uintptr {
		if errno != 0 {
			fault("%s: %v", name, errno)
		}
		return result
	}

	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		fault("epoll: %v", err)
	}
	var event syscall.EpollEvent
	keep("epoll_pwait", 0, func() (uintptr, syscall.Errno) {
		return call(epollPwait, uintptr(epoll), uintptr(unsafe.Pointer(&event)), 1, uintptr(length.Milliseconds()), 0, 0)
	})

	down := struct {
		number    uint16
		operation int16
		flags     int16
	}{0, -1, 0}
	semaphore := ^uintptr(0)
	keep("semtimedop", syscall.EAGAIN, func() (uintptr, syscall.Errno) {
		if semaphore == ^uintptr(0) {
			// Semaphores outlive their process, except in a namespace that ends with it.
			if _, errno := call(syscall.SYS_UNSHARE, syscall.CLONE_NEWIPC); errno != 0 {
				nap(length)
				return 0, syscall.EAGAIN
			}
			result, errno := call(semget, 0, 1, 0o600)
			semaphore = must("semget", result, errno)
		}
		return call(semtimedop, semaphore, uintptr(unsafe.Pointer(&down)), 1, span)
	})

	signals := uint64(1) << (50 - 1)
	keep("rt_sigtimedwait", syscall.EAGAIN, func() (uintptr, syscall.Errno) {
		return call(sigtimedwait, uintptr(unsafe.Pointer(&signals)), 0, span, 8)
	})

	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		fault("socketpair: %v", err)
	}
	patience := syscall.NsecToTimeval(length.Nanoseconds())
	if err := syscall.SetsockoptTimeval(pair[0], syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &patience); err != nil {
		fault("SO_RCVTIMEO: %v", err)
	}
	var bytes [8]byte
	keep("recv with SO_RCVTIMEO", syscall.EAGAIN, func() (uintptr, syscall.Errno) {
		return call(syscall.SYS_RECVFROM, uintptr(pair[0]), uintptr(unsafe.Pointer(&bytes)), 8, 0, 0, 0)
	})

	var context uint64
	result, errno := call(ioSetup, 4, uintptr(unsafe.Pointer(&context)))
	must("io_setup", result, errno)
	var events [32]byte
	keep("io_getevents", 0, func() (uintptr, syscall.Errno) {
		return call(ioGetevents, uintptr(context), 1, 1, uintptr(unsafe.Pointer(&events)), span)
	})

	keep("nanosleep", 0, func() (uintptr, syscall.Errno) {
		return call(syscall.SYS_NANOSLEEP, span, 0)
	})
	keep("clock_nanosleep", 0, func() (uintptr, syscall.Errno) {
		return call(clockNanosleep, 1, 0, span, 0)
	})
	keep("poll", 0, func() (uintptr, syscall.Errno) {
		return call(poll, 0, 0, uintptr(length.Milliseconds()))
	})
	var word uint32
	keep("futex", syscall.ETIMEDOUT, func() (uintptr, syscall.Errno) {
		return call(futex, uintptr(unsafe.Pointer(&word)), 128, 0, span)
	})

	result, errno = call(timerfdCreate, 1, syscall.O_CLOEXEC)
	clock := must("timerfd", result, errno)
	once := [2]syscall.Timespec{{}, timeout}
	var expired uint64
	keep("timerfd", 0, func() (uintptr, syscall.Errno) {
		if _, errno := call(timer, clock, 0, uintptr(unsafe.Pointer(&once)), 0); errno != 0 {
			return 0, errno
		}
		return call(syscall.SYS_READ, clock, uintptr(unsafe.Pointer(&expired)), 8)
	})
}
