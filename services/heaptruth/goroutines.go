package main

import (
	"bytes"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"
)

// goroutine is what is true of one of them.
type goroutine struct {
	ID       uint64 `json:"id"`
	Function string `json:"function"`
	// State as the runtime prints it.
	State string `json:"state"`
	// WaitsOn is the channel or the lock, where it is on the heap.
	WaitsOn string `json:"waits_on,omitempty"`
	// Leaked: nothing can ever wake it.
	Leaked bool `json:"leaked"`
	// Retains are bytes that it alone holds, what it waits on included.
	Retains uint64 `json:"retains"`
}

// Payload is what a blocked goroutine holds.
type Payload struct {
	Number uint64
	Leaf   *Leaf
	Pad    [10]uint64
}

// Held is a list in the frame of a goroutine that waits.
type Held struct {
	Number uint64
	Next   *Held
	Pad    [2]uint64
}

// Locks are on the heap and known to nobody but who waits.
type Locks struct {
	Mutex sync.Mutex
	Group sync.WaitGroup
	Cond  *sync.Cond
	Pad   [4]*Leaf
}

// Gate is reached from a variable.
type Gate struct{ Open chan int }

var (
	release = make(chan int)
	gate    = &Gate{Open: make(chan int)}
	never   chan int
	// started is told by each goroutine before it waits.
	started = make(chan goroutine)
)

// self is the number of the goroutine that calls.
func self() uint64 {
	var room [64]byte
	text := room[:runtime.Stack(room[:], false)]
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0
	}
	id, _ := strconv.ParseUint(string(fields[1]), 10, 64)
	return id
}

// payload is on the heap: inlined, it would be on the stack of who asked.
//
//go:noinline
func payload() *Payload { return &Payload{Leaf: leaves(1)} }

func chanAddress(c chan int) string { return address(*(*unsafe.Pointer)(unsafe.Pointer(&c))) }

//go:noinline
func keep(p *Payload) { runtime.KeepAlive(p) }

func say(function, on string, leaked bool) {
	started <- goroutine{ID: self(), Function: "main." + function, WaitsOn: on, Leaked: leaked}
}

// heldCount is no argument of [holdList]: with one, the goroutine would start with a wrapper.
var heldCount int

func holdList() {
	var first *Held
	for i := 0; i < heldCount; i++ {
		first = &Held{Number: uint64(i), Next: first}
	}
	started <- goroutine{ID: self(), Function: "main.holdList", WaitsOn: address(unsafe.Pointer(first))}
	<-release
	runtime.KeepAlive(first)
}

func leakReceive() {
	p, c := payload(), make(chan int)
	say("leakReceive", chanAddress(c), true)
	<-c
	keep(p)
}

func leakSend() {
	p, c := payload(), make(chan int)
	say("leakSend", chanAddress(c), true)
	c <- 1
	keep(p)
}

func leakSelect() {
	p, a, b := payload(), make(chan int), make(chan int)
	say("leakSelect", chanAddress(a), true)
	select {
	case <-a:
	case b <- 1:
	}
	keep(p)
}

func leakNil() {
	p := payload()
	say("leakNil", "", true)
	<-never
	keep(p)
}

func leakEmptySelect() {
	say("leakEmptySelect", "", true)
	select {}
}

func leakMutex() {
	p, l := payload(), &Locks{}
	l.Mutex.Lock()
	say("leakMutex", address(unsafe.Pointer(l)), true)
	l.Mutex.Lock()
	keep(p)
}

func leakGroup() {
	p, l := payload(), &Locks{}
	l.Group.Add(1)
	say("leakGroup", address(unsafe.Pointer(l)), true)
	l.Group.Wait()
	keep(p)
}

func leakCond() {
	p, l := payload(), &Locks{}
	l.Cond = sync.NewCond(&l.Mutex)
	l.Mutex.Lock()
	say("leakCond", address(unsafe.Pointer(l.Cond)), true)
	l.Cond.Wait()
	keep(p)
}

// leakPair starts another one; each waits for the other.
func leakPair() {
	a, b, p := make(chan int), make(chan int), payload()
	go leakOther(a, b)
	say("leakPair", chanAddress(a), true)
	<-a
	b <- 1
	keep(p)
}

func leakOther(a, b chan int) {
	p := payload()
	say("leakOther", chanAddress(b), true)
	<-b
	a <- 1
	keep(p)
}

// waitGate waits for what a variable leads to.
func waitGate() {
	p := payload()
	say("waitGate", chanAddress(gate.Open), false)
	<-gate.Open
	keep(p)
}

// waitSleeper waits for a channel that only a sleeping goroutine knows.
func waitSleeper() {
	c, p := make(chan int), payload()
	go sleep(c)
	say("waitSleeper", chanAddress(c), false)
	<-c
	keep(p)
}

func sleep(wake chan int) {
	say("sleep", "", false)
	time.Sleep(1000 * time.Hour)
	wake <- 1
}

// buildGoroutines starts all and comes back when all wait; the list that one of them holds is
// a structure.
func buildGoroutines(scale int) ([]goroutine, *structure) {
	heldCount = 80 * scale
	channel := allocated(func() { never = make(chan int) }).Bytes
	never = nil
	own := map[string]uint64{
		"main.leakReceive": channel, "main.leakSend": channel, "main.leakSelect": 2 * channel,
		"main.leakMutex": sizeOf[Locks](), "main.leakGroup": sizeOf[Locks](),
		"main.leakCond": sizeOf[Locks]() + sizeOf[sync.Cond](),
	}
	starts := []func(){
		leakReceive, leakSend, leakSelect, leakNil, leakEmptySelect, leakMutex, leakGroup, leakCond,
		leakPair, waitGate, waitSleeper,
	}
	for _, start := range starts {
		go start()
	}
	go holdList()
	var all []goroutine
	var s *structure
	for len(all) < len(starts)+3 {
		g := <-started
		if g.Function == "main.holdList" {
			s = newStructure("held", g.Function)
			s.First = g.WaitsOn
			s.add("main.Held", heldCount, sizeOf[Held]())
			g.WaitsOn = chanAddress(release)
			g.Retains = s.Retained
		} else if g.Function != "main.leakEmptySelect" && g.Function != "main.sleep" {
			g.Retains = sizeOf[Payload]() + sizeOf[Leaf]() + own[g.Function]
		}
		all = append(all, g)
	}
	for tries := 0; tries < 1000; tries++ {
		if states := states(); wait(all, states) {
			return all, s
		}
		time.Sleep(time.Millisecond)
	}
	panic("the goroutines do not come to rest")
}

// wait notes the states, and tells whether all wait.
func wait(all []goroutine, states map[uint64]string) bool {
	for i := range all {
		state := states[all[i].ID]
		if state == "" || state == "running" || state == "runnable" {
			return false
		}
		all[i].State = state
	}
	return true
}

// states of all goroutines, as the runtime prints them.
func states() map[uint64]string {
	text := make([]byte, 1<<20)
	text = text[:runtime.Stack(text, true)]
	found := map[uint64]string{}
	for _, line := range strings.Split(string(text), "\n") {
		var id uint64
		if _, err := fmt.Sscanf(line, "goroutine %d [", &id); err != nil {
			continue
		}
		_, state, _ := strings.Cut(line, "[")
		state, _, _ = strings.Cut(state, "]")
		state, _, _ = strings.Cut(state, ",")
		found[id] = state
	}
	return found
}
