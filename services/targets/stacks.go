package main

import (
	"syscall"
	"time"
	"unsafe"
)

// dive goes down by frames that know what they hold, waits in the kernel at the bottom, and
// checks the frames on the way back. go:noinline: each must have a frame.
//
//go:noinline
func dive(depth int, seed uint64) uint64 {
	frame := [4]uint64{seed, ^seed, seed * 3, seed * 5}
	sum := uint64(0)
	if depth > 0 {
		sum = dive(depth-1, seed+1)
	} else {
		sum = atTheBottom(seed)
	}
	if frame != [4]uint64{seed, ^seed, seed * 3, seed * 5} {
		fault("a frame %d above the bottom is damaged", depth)
	}
	return sum + frame[0]
}

//go:noinline
func atTheBottom(seed uint64) uint64 {
	// A few wait for long. Were it all of them, the runtime's monitor, once it looks every 10 ms
	// only, would never see one call twice, and take no processor from it: the program stands
	// still for half a second then, with nobody near.
	wait := syscall.Timespec{Nsec: 200_000}
	if seed>>32%7 == 0 {
		wait.Nsec = 3_000_000
	}
	_, _, errno := syscall.Syscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&wait)), 0, 0)
	if errno == syscall.EINTR {
		interrupted.Add(1)
	}
	// Without a word to the runtime: the thread keeps its processor.
	wait.Nsec = 50_000
	syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&wait)), 0, 0)
	return seed
}

// nearTheEnd keeps goroutines at all depths of their stacks; some are always close to where
// the stack ends and that of another goroutine begins.
func nearTheEnd() {
	for n := 0; n < 40; n++ {
		depth := 3 + 7*n
		seed := uint64(n) << 32
		expected := seed + uint64(depth)
		for at := 0; at <= depth; at++ {
			expected += seed + uint64(at)
		}
		// A stack of its own for each round, of the least size.
		go func() {
			for {
				done := make(chan uint64)
				go func() { done <- dive(depth, seed) }()
				if got := <-done; got != expected {
					fault("recursion of %d: %x instead of %x", depth, got, expected)
				}
				beats.Add(1)
				time.Sleep(5 * time.Millisecond)
			}
		}()
	}
}
