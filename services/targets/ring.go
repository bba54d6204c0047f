package main

import (
	"bytes"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	ioUringSetup, ioUringEnter       = 425, 426
	opRead, opWrite, opTimeout       = 22, 23, 11
	offSubmission, offEntries        = 0, 0x10000000
	offCompletion                    = 0x8000000
	enterGetEvents             uint  = 1
	timeUp                     int32 = -int32(syscall.ETIME)
)

// ringParameters is struct io_uring_params.
type ringParameters struct {
	entries, completions, flags, cpu, idle, features, worker uint32
	reserved                                                 [3]uint32
	submission                                               struct{ head, tail, mask, entries, flags, dropped, array, reserved uint32 }
	submissionAddress                                        uint64
	completion                                               struct{ head, tail, mask, entries, overflow, cqes, flags, reserved uint32 }
	completionAddress                                        uint64
}

// ringEntry is struct io_uring_sqe.
type ringEntry struct {
	operation, flags uint8
	priority         uint16
	fd               int32
	offset, address  uint64
	length, call     uint32
	user             uint64
	rest             [3]uint64
}

// ringDone is struct io_uring_cqe.
type ringDone struct {
	user   uint64
	result int32
	flags  uint32
}

// submitToRing writes into a pipe, reads it back, and waits, all through io_uring; each
// submission must complete once, with what it should.
func submitToRing() {
	var parameters ringParameters
	fd, _, errno := syscall.Syscall(ioUringSetup, 8, uintptr(unsafe.Pointer(&parameters)), 0)
	if errno != 0 {
		fault("io_uring_setup: %v", errno)
		return
	}
	look := func(offset int64, length int) []byte {
		memory, err := syscall.Mmap(int(fd), offset, length, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		if err != nil {
			fault("mmap of a ring: %v", err)
			return make([]byte, length)
		}
		return memory
	}
	submission := look(offSubmission, int(parameters.submission.array+parameters.entries*4))
	completion := look(offCompletion, int(parameters.completion.cqes+parameters.completions*16))
	entries := look(offEntries, int(parameters.entries)*64)
	word := func(memory []byte, at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&memory[at])) }
	ends := pipe()
	go func() {
		runtime.LockOSThread()
		user := uint64(0)
		// run submits one entry and waits for its completion.
		run := func(entry ringEntry) int32 {
			user++
			entry.user = user
			tail := atomic.LoadUint32(word(submission, parameters.submission.tail))
			at := tail & *word(submission, parameters.submission.mask)
			*(*ringEntry)(unsafe.Pointer(&entries[at*64])) = entry
			*word(submission, parameters.submission.array+at*4) = at
			atomic.StoreUint32(word(submission, parameters.submission.tail), tail+1)
			submit := uintptr(1)
			for {
				n, _, errno := syscall.Syscall6(ioUringEnter, fd, submit, 1, uintptr(enterGetEvents), 0, 0)
				if errno == syscall.EINTR {
					interrupted.Add(1)
				} else if errno != 0 {
					fault("io_uring_enter: %v", errno)
				} else {
					submit -= n
				}
				// Interrupted after it submitted: the kernel says how far it came.
				if atomic.LoadUint32(word(submission, parameters.submission.head)) == tail+1 {
					submit = 0
				}
				head := atomic.LoadUint32(word(completion, parameters.completion.head))
				if head == atomic.LoadUint32(word(completion, parameters.completion.tail)) {
					continue
				}
				place := head & *word(completion, parameters.completion.mask)
				done := *(*ringDone)(unsafe.Pointer(&completion[parameters.completion.cqes+place*16]))
				atomic.StoreUint32(word(completion, parameters.completion.head), head+1)
				if done.user != user {
					fault("io_uring: completion %d instead of %d", done.user, user)
				}
				return done.result
			}
		}
		written, read := make([]byte, 4096), make([]byte, 4096)
		wait := syscall.NsecToTimespec(5_000_000)
		for round := byte(1); ; round++ {
			for at := range written {
				written[at] = round + byte(at)
			}
			address := func(memory []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&memory[0]))) }
			if n := run(ringEntry{operation: opWrite, fd: int32(ends[1]), address: address(written), length: 4096}); n != 4096 {
				fault("io_uring wrote %d", n)
			}
			if n := run(ringEntry{operation: opRead, fd: int32(ends[0]), address: address(read), length: 4096}); n != 4096 || !bytes.Equal(read, written) {
				fault("io_uring read %d, equal %v", n, bytes.Equal(read, written))
			}
			entry := ringEntry{operation: opTimeout, fd: -1, address: uint64(uintptr(unsafe.Pointer(&wait))), length: 1}
			if n := run(entry); n != timeUp {
				fault("io_uring timeout: %d", n)
			}
			beats.Add(1)
		}
	}()
}
