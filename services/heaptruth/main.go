// heaptruth builds a heap of which everything is known and prints what is true of it, one
// JSON document on one line. Then it waits, with everything alive and the collector off,
// until its standard input ends; for each line there it prints the longest gap between two
// beats of its clock since the line before (see -beat).
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"
)

type truth struct {
	Go         string       `json:"go"`
	Pid        int          `json:"pid"`
	Scale      int          `json:"scale"`
	Cleanups   bool         `json:"cleanups"`
	Structures []*structure `json:"structures"`
	// Shared is held by two structures and retained by neither.
	Shared map[string]tally `json:"shared"`
	// Needed is held by a structure and by finalizers, and retained by neither.
	Needed map[string]tally `json:"needed_by_finalizers"`
	// Dead was made after the last collection, and nobody holds it.
	Dead       map[string]tally `json:"dead"`
	Goroutines []goroutine      `json:"goroutines"`
	// CBytes is what the C part holds outside the heap.
	CBytes int    `json:"c_bytes"`
	Filled uint64 `json:"filled"`
}

func finalize(h *Handle)       { runtime.SetFinalizer(h, func(*Handle) {}) }
func finalizeCloser(c *Closer) { runtime.SetFinalizer(c, func(*Closer) {}) }

func build(scale int) *truth {
	t := &truth{Go: runtime.Version(), Pid: os.Getpid(), Scale: scale, Cleanups: cleanups, Needed: map[string]tally{}}
	for _, build := range []func(int) *structure{
		buildList, buildTree, buildByName, buildByNumber, buildEmptied, buildGrid, buildRing, buildQueue,
		buildTicks, buildCounters, buildInner, buildBig, buildTexts, buildBlobs, buildHandles, buildCleaned,
	} {
		t.Structures = append(t.Structures, build(scale))
	}
	owners, shared := buildOwners(scale)
	t.Structures = append(t.Structures, owners...)
	t.Shared = shared
	t.Structures = append(t.Structures, buildClosers(scale, t.Needed), buildPool())
	goroutines, held := buildGoroutines(scale)
	t.Goroutines = goroutines
	t.Structures = append(t.Structures, held)
	return t
}

// longest is the longest gap between two beats, in nanoseconds.
var longest atomic.Int64

func beat() {
	runtime.LockOSThread()
	last := time.Now()
	for {
		time.Sleep(200 * time.Microsecond)
		now := time.Now()
		gap := now.Sub(last).Nanoseconds()
		last = now
		for {
			before := longest.Load()
			if gap <= before || longest.CompareAndSwap(before, gap) {
				break
			}
		}
	}
}

// out is written in one go, without an allocation that would disturb the truth.
var out []byte

func main() {
	scale := flag.Int("scale", 1, "size of the structures")
	filling := flag.Uint64("fill", 0, "beside them, this many bytes of the heap of an everyday service")
	beats := flag.Bool("beat", false, "measure gaps in which the process stands still")
	deadCount := flag.Int("dead", 500, "objects that nobody holds")
	flag.Parse()
	if *scale < 1 || *scale > 1000 {
		fmt.Fprintln(os.Stderr, "heaptruth: -scale is from 1 to 1000")
		os.Exit(2)
	}
	processors := runtime.GOMAXPROCS(0)
	quiet()
	t := build(*scale)
	t.CBytes = takeC(1 << 20)
	fill(*filling)
	t.Filled = *filling
	n := uint64(*deadCount)
	t.Dead = map[string]tally{"main.Dead": {n, n * sizeOf[Dead]()}}
	serve(t, *deadCount, *beats, processors)
}

func serve(t *truth, deadCount int, beats bool, processors int) {
	lines := bufio.NewReader(os.Stdin)
	text, err := json.Marshal(t)
	if err != nil {
		panic(err)
	}
	out = make([]byte, 0, len(text)+200)
	out = append(out, text[:len(text)-1]...)
	text = nil
	t = nil
	if beats {
		go beat()
	}
	runtime.GC()
	runtime.GC()
	fillPool(&pool)
	poolContent = [pooled]*Buffer{}
	runtime.ReadMemStats(&stats)
	out = append(out, `,"heap_live":`...)
	out = strconv.AppendUint(out, stats.HeapAlloc, 10)
	out = append(out, `,"live_objects":`...)
	out = strconv.AppendUint(out, stats.HeapObjects, 10)
	sink = unsafe.Pointer(makeDead(deadCount))
	sink = nil
	runtime.GOMAXPROCS(processors)
	runtime.ReadMemStats(&stats)
	out = append(out, `,"heap_alloc":`...)
	out = strconv.AppendUint(out, stats.HeapAlloc, 10)
	out = append(out, "}\n"...)
	if _, err := os.Stdout.Write(out); err != nil {
		return
	}
	for {
		if _, err := lines.ReadSlice('\n'); err != nil {
			return
		}
		fmt.Printf("{\"gap_ms\":%.3f}\n", float64(longest.Swap(0))/1e6)
	}
}
