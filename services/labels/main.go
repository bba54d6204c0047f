// Command labels is a service that knows nothing of memtrace: jobs under labels of
// runtime/pprof, all of the same code, of which one may leak. It tells its pid, and with
// -truth which object it allocated under which label.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// record is what all jobs allocate, at one place.
type record struct {
	block string
	data  [4096]byte
}

//go:noinline
func newRecord(block string) *record {
	return &record{block: block}
}

// archive keeps the records of the job that leaks.
type archive struct {
	mu      sync.Mutex
	records []*record
}

func (a *archive) add(r *record) {
	a.mu.Lock()
	a.records = append(a.records, r)
	a.mu.Unlock()
}

var leaked archive

// ask starts a goroutine that waits for an answer nobody gives.
func ask() {
	answer := make(chan int)
	go func() {
		answer <- 1
	}()
}

// job makes records at a rate and keeps the newest of them, or all.
func job(block string, bytesPerSecond float64, leaks, hangs func() bool) {
	var newest [64]*record
	const beat = 10 * time.Millisecond
	perBeat := bytesPerSecond * beat.Seconds() / float64(unsafe.Sizeof(record{}))
	due := 0.0
	next := 0
	for range time.Tick(beat) {
		if hangs() {
			for i := 0; i < 3; i++ {
				ask()
			}
		}
		for due += perBeat; due >= 1; due-- {
			r := newRecord(block)
			newest[next%len(newest)] = r
			next++
			if leaks() {
				leaked.add(r)
			}
		}
	}
}

func name(i int) string { return fmt.Sprintf("G%03d-M%02d", i/20+1, i%20+1) }

// tell allocates under labels, waits for a line, and prints which object has which.
func tell(count int) {
	var kept []*record
	fmt.Scanln()
	for i := 0; i < count; i++ {
		block := name(i % 20)
		labels := pprof.Labels("block", block, "line", "main", "shift", "a shift with a name that is far too long for what is fetched of a value")
		if i%4 == 3 {
			block = ""
			labels = pprof.Labels()
		}
		pprof.Do(context.Background(), labels, func(context.Context) {
			kept = append(kept, newRecord(block))
		})
		// Where all allocations are sampled, there are many more of them.
		time.Sleep(2 * time.Millisecond)
	}
	for _, r := range kept {
		fmt.Printf("%d %s\n", uintptr(unsafe.Pointer(r)), r.block)
	}
	fmt.Println("end")
	select {}
}

func main() {
	jobs := flag.Int("jobs", 20, "how many")
	rate := flag.Float64("rate", 400e3, "bytes per second that each job allocates")
	leak := flag.String("leak", "", "the job that leaks")
	hang := flag.String("hang", "", "the job that starts goroutines which never end")
	after := flag.Duration("leak-after", 0, "when they begin to")
	section := flag.String("section", "", "a label that is set for a second, every other second")
	truth := flag.Int("truth", 0, "allocate so many objects after a line on stdin, and tell their labels")
	flag.Parse()
	fmt.Println("pid", os.Getpid())

	// Like most services it can tell its heap profile; otherwise Go samples nothing.
	profile := make(chan os.Signal, 1)
	signal.Notify(profile, syscall.SIGUSR1)
	go func() {
		for range profile {
			_ = pprof.Lookup("heap").WriteTo(os.Stderr, 1)
		}
	}()
	if *truth > 0 {
		tell(*truth)
	}
	start := time.Now()
	for i := 0; i < *jobs; i++ {
		block := name(i)
		from := func(which string) func() bool {
			return func() bool { return block == which && time.Since(start) >= *after }
		}
		go pprof.Do(context.Background(), pprof.Labels("block", block), func(context.Context) {
			job(block, *rate, from(*leak), from(*hang))
		})
	}
	for *section != "" {
		pprof.Do(context.Background(), pprof.Labels("section", *section), func(context.Context) {
			time.Sleep(time.Second)
		})
		time.Sleep(time.Second)
	}
	select {}
}
