package main

import (
	"encoding/binary"
	"io"
	"math"
	"net"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

var version = runtime.Version()

// Item is an object that knows what it must look like.
type Item struct {
	number uint64
	sum    uint64
	next   *Item
	words  [5]uint64
}

var (
	// all has each item in one place; nothing else holds one for longer than a moment.
	all []*Item
	// numbers is only ever written by newItem, which one goroutine calls at a time.
	numbers uint64
)

func newItem() *Item {
	numbers++
	item := &Item{number: numbers}
	item.fill(numbers)
	return item
}

func (i *Item) fill(seed uint64) {
	i.sum = 0
	for at := range i.words {
		i.words[at] = seed*0x9e3779b97f4a7c15 + uint64(at)
		i.sum ^= i.words[at]
	}
}

func (i *Item) whole() bool {
	sum := uint64(0)
	for _, word := range i.words {
		sum ^= word
	}
	return sum == i.sum
}

func makeItems(n int) {
	all = make([]*Item, n)
	for at := range all {
		all[at] = newItem()
	}
}

// live starts what every target does.
func live() {
	makeItems(*items)
	checkItems()
	checkRegisters()
	checkSleeps()
	checkChannel()
	checkConversation()
	checkPipe()
	go beat(&longestGap)
}

// checkItems looks through the items, and puts new ones in the place of a few.
func checkItems() {
	at := 0
	every(3*time.Millisecond, func() {
		for n := 0; n < 100 && len(all) > 0; n++ {
			at = (at + 1) % len(all)
			if !all[at].whole() {
				fault("item %d is damaged", all[at].number)
			}
			if n%20 == 0 {
				all[at] = newItem()
			}
		}
	})
}

// walk computes in registers, integers and floating point.
func walk(seed uint64, rounds int) (uint64, uint64, float64) {
	a, b, f := seed, ^seed, 1.0
	for n := 0; n < rounds; n++ {
		a = a<<7 ^ a>>57 ^ b*0x9e3779b97f4a7c15
		b += a >> 3
		f = math.Sqrt(f*1.0000001+0.5) + float64(a&7)
	}
	return a, b, f
}

func checkRegisters() {
	const rounds = 20_000
	a, b, f := walk(42, rounds)
	every(4*time.Millisecond, func() {
		x, y, z := walk(42, rounds)
		if a != x || b != y || f != z {
			fault("registers: %x %x %v instead of %x %x %v", x, y, z, a, b, f)
		}
	})
}

// checkSleeps: a sleep never ends early, whatever interrupts it.
func checkSleeps() {
	const nap = 7 * time.Millisecond
	for n := 0; n < 2; n++ {
		every(0, func() {
			began := time.Now()
			time.Sleep(nap)
			if slept := time.Since(began); slept < nap {
				fault("a sleep of %v ended after %v", nap, slept)
			}
		})
	}
}

func checkChannel() {
	there, back := make(chan uint64), make(chan uint64)
	go func() {
		for n := range there {
			back <- n + 1
		}
	}()
	n := uint64(0)
	every(time.Millisecond, func() {
		n += 2
		there <- n
		if got := <-back; got != n+1 {
			fault("channel: %d instead of %d", got, n+1)
		}
	})
}

// listener must not be collected: that would close it.
var listener net.Listener

// checkConversation asks a server of this process over TCP; each request must be answered.
func checkConversation() {
	var err error
	if listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		fault("listen: %v", err)
		return
	}
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			fault("accept: %v", err)
			return
		}
		if _, err := io.Copy(connection, connection); err != nil {
			fault("server: %v", err)
		}
	}()
	connection, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		fault("dial: %v", err)
		return
	}
	n := uint64(0)
	var said, heard [512]byte
	every(3*time.Millisecond, func() {
		n++
		for at := 0; at < len(said); at += 8 {
			binary.LittleEndian.PutUint64(said[at:], n+uint64(at))
		}
		if _, err := connection.Write(said[:]); err != nil {
			fault("client writes: %v", err)
		}
		if _, err := io.ReadFull(connection, heard[:]); err != nil || heard != said {
			fault("client reads: %v, equal %v", err, heard == said)
		}
	})
}

// pipe is one that no other program inherits.
func pipe() (ends [2]int) {
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		fault("pipe: %v", err)
	}
	return ends
}

// checkPipe has a thread block in the kernel, without the runtime's poller.
func checkPipe() {
	ends := pipe()
	go func() {
		runtime.LockOSThread()
		var bytes [8]byte
		for expected := uint64(1); ; expected++ {
			for {
				n, _, errno := syscall.Syscall(syscall.SYS_READ, uintptr(ends[0]), uintptr(unsafe.Pointer(&bytes)), 8)
				if errno == syscall.EINTR {
					interrupted.Add(1)
					continue
				}
				if n != 8 || binary.LittleEndian.Uint64(bytes[:]) != expected {
					fault("pipe: %d bytes, %v, %d instead of %d", n, errno, binary.LittleEndian.Uint64(bytes[:]), expected)
				}
				break
			}
		}
	}()
	n := uint64(0)
	every(6*time.Millisecond, func() {
		n++
		var bytes [8]byte
		binary.LittleEndian.PutUint64(bytes[:], n)
		if _, err := syscall.Write(ends[1], bytes[:]); err != nil {
			fault("pipe: %v", err)
		}
	})
}
