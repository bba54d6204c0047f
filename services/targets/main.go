// targets is a program to take snapshots of. It checks all the time whether it is whole: its
// memory, its registers, its sleeps, its conversations; each -mode adds what is hard about
// one kind of process. For each line on its standard input it prints its state, one JSON
// document on one line; it ends with that input.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// state is what the program says of itself.
type state struct {
	Pid  int    `json:"pid"`
	Go   string `json:"go"`
	Mode string `json:"mode"`
	// Items is how many objects of the type main.Item are alive, at each moment.
	Items int `json:"items"`
	// Beats counts rounds in which all was as it should be.
	Beats int64 `json:"beats"`
	// GapMs is the longest time since the last question in which a loop of 1 kHz stood still.
	GapMs float64 `json:"gap_ms"`
	// LateMs is the same of a thread with a real-time priority.
	LateMs float64 `json:"late_ms"`
	// Interrupted counts calls that ended with EINTR, which their callers must expect.
	Interrupted int64 `json:"interrupted"`
	// Faults is what must never be.
	Faults     int64    `json:"faults"`
	FaultTexts []string `json:"fault_texts"`
	// Execs is how often the program has replaced itself.
	Execs int `json:"execs"`
	// Asked is of the mode load only.
	Asked *asked `json:"asked,omitempty"`
}

var (
	beats       atomic.Int64
	interrupted atomic.Int64
	longestGap  atomic.Int64
	faultCount  atomic.Int64
	faultMu     sync.Mutex
	faultTexts  []string
)

// fault notes that something is not as it must be.
func fault(format string, words ...any) {
	faultCount.Add(1)
	faultMu.Lock()
	defer faultMu.Unlock()
	if len(faultTexts) < 10 {
		faultTexts = append(faultTexts, fmt.Sprintf(format, words...))
	}
}

// raise makes the value at least so large.
func raise(highest *atomic.Int64, value int64) {
	for {
		before := highest.Load()
		if value <= before || highest.CompareAndSwap(before, value) {
			return
		}
	}
}

// execsBefore is how an image of a program that replaces itself knows of those before it.
const execsBefore = "TARGETS_EXECS"

// talk is held while an answer is given, and by whoever replaces the program.
var talk sync.Mutex

var (
	mode  = flag.String("mode", "plain", "what is hard about this process; see modes.go")
	size  = flag.Int("n", 0, "size of the mode: threads, goroutines, MiB")
	items = flag.Int("items", 2000, "objects of a known type")
)

func main() {
	as := flag.String("as", "", "how to run, comma-separated; see setup.go")
	flag.Parse()
	setUp(*as)
	execs, _ := strconv.Atoi(os.Getenv(execsBefore))
	run, known := modes[*mode]
	if !known {
		fmt.Fprintf(os.Stderr, "targets: no mode %q\n", *mode)
		os.Exit(2)
	}
	run(*size)
	tighten(*as)
	if execs == 0 {
		answer(execs)
	}
	for {
		await(0)
		talk.Lock()
		var line [64]byte
		n, err := syscall.Read(0, line[:])
		if err == nil && n == 0 {
			os.Exit(0)
		}
		if n > 0 {
			answer(execs)
		}
		talk.Unlock()
	}
}

// await returns when there is something to read.
func await(fd int32) {
	descriptor := struct {
		fd             int32
		events, result int16
	}{fd, 1, 0}
	for {
		n, _, _ := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&descriptor)), 1, 0, 0, 0, 0)
		if int(n) > 0 {
			return
		}
	}
}

func answer(execs int) {
	faultMu.Lock()
	texts := append([]string{}, faultTexts...)
	faultMu.Unlock()
	line, _ := json.Marshal(state{
		Pid: hostPid(), Go: version, Mode: *mode, Items: *items, Beats: beats.Load(),
		GapMs:  float64(longestGap.Swap(0)) / 1e6,
		LateMs: float64(worstLateness()) / 1e6, Interrupted: interrupted.Load(),
		Faults: faultCount.Load(), FaultTexts: texts, Execs: execs, Asked: takeAsked(),
	})
	os.Stdout.Write(append(line, '\n'))
}

// hostPid is the process's number as /proc knows it, also from within a namespace.
func hostPid() int {
	self, _ := os.Readlink("/proc/self")
	pid, _ := strconv.Atoi(self)
	return pid
}

// every runs check again and again, with a pause between; each round counts as a beat.
func every(pause time.Duration, check func()) {
	go func() {
		for {
			check()
			beats.Add(1)
			time.Sleep(pause)
		}
	}()
}
