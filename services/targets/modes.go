package main

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// modes are the kinds of process: what each does beside the life that all have.
var modes = map[string]func(size int){
	"plain":      func(int) { live() },
	"c":          func(int) { live(); liveInC() },
	"threads":    manyThreads,
	"goroutines": manyGoroutines,
	"profiled":   profiled,
	"exec":       execAgain,
	"spawn":      spawnChildren,
	"rewrite":    rewrite,
	"starts":     func(int) { live(); warmThreads(24); startsThreads() },
	"stacks":     func(int) { live(); nearTheEnd(); smallStacksInC() },
	"calls":      func(int) { live(); waitInAllWays() },
	"ring":       func(int) { live(); submitToRing() },
	"vfork":      func(int) { live(); vforks() },
	"realtime":   func(int) { live(); realTime() },
	"busy":       busy,
	"load":       load,
}

// busy is no target: it takes a processor from others.
func busy(int) {
	go func() {
		for seed := uint64(0); ; seed++ {
			walk(seed, 1_000_000)
		}
	}()
}

// manyThreads has threads that all wait in the kernel; a word goes to one of them at a time.
func manyThreads(n int) {
	live()
	ends := pipe()
	got := make(chan byte, 1)
	for ; n > 0; n-- {
		go func() {
			runtime.LockOSThread()
			var word [1]byte
			for {
				read, _, errno := syscall.Syscall(syscall.SYS_READ, uintptr(ends[0]), uintptr(unsafe.Pointer(&word)), 1)
				if errno == syscall.EINTR {
					interrupted.Add(1)
					continue
				}
				if read != 1 {
					fault("a thread read %d bytes: %v", read, errno)
				}
				got <- word[0]
			}
		}()
	}
	word := byte(0)
	every(20*time.Millisecond, func() {
		word++
		if _, err := syscall.Write(ends[1], []byte{word}); err != nil {
			fault("pipe: %v", err)
		}
		if back := <-got; back != word {
			fault("threads: %d instead of %d", back, word)
		}
	})
	// All of them wait.
	time.Sleep(300 * time.Millisecond)
}

// waiting is what many goroutines do: nothing, until a word comes.
func waiting(in, out chan uint64) {
	for n := range in {
		out <- n + 1
	}
}

func manyGoroutines(n int) {
	live()
	in, out := make(chan uint64), make(chan uint64)
	for ; n > 0; n-- {
		go waiting(in, out)
	}
	word := uint64(0)
	every(10*time.Millisecond, func() {
		word += 2
		in <- word
		if back := <-out; back != word+1 {
			fault("goroutines: %d instead of %d", back, word+1)
		}
	})
}

// profiled runs under a CPU profile of 1 kHz: signals come at each moment.
func profiled(int) {
	live()
	runtime.SetCPUProfileRate(1000)
	go func() {
		for {
			var out bytes.Buffer
			// Says that the rate is set already, and keeps it.
			if err := pprof.StartCPUProfile(&out); err != nil {
				fault("profile: %v", err)
			}
			time.Sleep(time.Second)
			pprof.StopCPUProfile()
			if out.Len() == 0 {
				fault("the profile is empty")
			}
			runtime.SetCPUProfileRate(1000)
		}
	}()
	a, b, f := walk(7, 100_000)
	every(2*time.Millisecond, func() {
		if x, y, z := walk(7, 100_000); a != x || b != y || f != z {
			fault("registers, while profiled")
		}
	})
}

// execAgain replaces the program by itself, again and again, with as many threads beside.
func execAgain(n int) {
	live()
	ends := pipe()
	for ; n > 0; n-- {
		go func() {
			runtime.LockOSThread()
			for {
				var word [1]byte
				_, _, _ = syscall.Syscall(syscall.SYS_READ, uintptr(ends[0]), uintptr(unsafe.Pointer(&word)), 1)
			}
		}()
	}
	time.AfterFunc(150*time.Millisecond, func() {
		talk.Lock()
		if faultCount.Load() > 0 {
			// Whoever replaces the program must not hide what it found.
			talk.Unlock()
			return
		}
		execs, _ := strconv.Atoi(os.Getenv(execsBefore))
		os.Setenv(execsBefore, strconv.Itoa(execs+1))
		err := syscall.Exec(os.Args[0], os.Args, os.Environ())
		fault("exec: %v", err)
		talk.Unlock()
	})
}

// spawnChildren starts programs all the time; its threads are in vfork then.
func spawnChildren(int) {
	live()
	for n := 0; n < 2; n++ {
		every(2*time.Millisecond, func() {
			out, err := exec.Command("/bin/echo", "whole").Output()
			if err != nil || string(out) != "whole\n" {
				fault("a child: %v, %q", err, out)
			}
		})
	}
}

// blocks is memory without pointers.
var blocks [][]uint64

// rewrite writes all of its memory again and again: half of it in blocks, half in items.
func rewrite(mib int) {
	*items = mib << 20 / 2 / int(unsafe.Sizeof(Item{}))
	live()
	for n := 0; n < mib/2; n++ {
		blocks = append(blocks, make([]uint64, 1<<17))
	}
	runtime.GC()
	go func() {
		for round := uint64(1); ; round++ {
			for _, block := range blocks {
				for at := range block {
					if block[at] != round-1 {
						fault("a block has %d instead of %d", block[at], round-1)
					}
					block[at] = round
				}
			}
			beats.Add(1)
		}
	}()
	go func() {
		for round := uint64(1); ; round++ {
			for at := range all {
				// Its place has another item at times; both are whole.
				item := all[at]
				item.next = nil
			}
			time.Sleep(time.Millisecond)
		}
	}()
}

// warmThreads makes the runtime have threads to spare: it starts none later.
func warmThreads(n int) {
	done := make(chan bool)
	for at := 0; at < n; at++ {
		go func() {
			nap(200 * time.Millisecond)
			done <- true
		}()
	}
	for at := 0; at < n; at++ {
		<-done
	}
}
