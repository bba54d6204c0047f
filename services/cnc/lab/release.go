package main

import (
	"fmt"
	"io"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"cnc/internal/servo"
)

// buffer is the Go side of a DMA buffer.
type buffer struct {
	memory []byte
	ticket int
}

// releases keeps the time from the last use of each buffer to its release.
type releases struct {
	mu     sync.Mutex
	used   []time.Time
	delays []time.Duration // -1 until released
}

func (r *releases) take() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = append(r.used, time.Now())
	r.delays = append(r.delays, -1)
	return len(r.used) - 1
}

func (r *releases) released(ticket int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delays[ticket] = time.Since(r.used[ticket])
}

// result returns the delays so far; a buffer that still waits counts with its age.
func (r *releases) result() (delays latencies, waiting int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, d := range r.delays {
		if d < 0 {
			waiting++
			d = time.Since(r.used[i])
		}
		delays = append(delays, int64(d))
	}
	delays.sort()
	return delays, waiting
}

// release is a way to free buffers: it makes one, uses it and lets it go.
type release struct {
	name string
	use  func(r *releases) error
}

// withFinalizer lets go of a buffer whose finalizer takes some time.
func withFinalizer(drive time.Duration) func(*releases) error {
	return func(r *releases) error {
		memory, err := servo.AllocateDMA(servo.DMABytes)
		if err != nil {
			return err
		}
		b := &buffer{memory: memory}
		runtime.SetFinalizer(b, func(b *buffer) {
			time.Sleep(drive)
			servo.FreeDMA(b.memory)
			r.released(b.ticket)
		})
		b.memory[0] = 1
		b.ticket = r.take()
		return nil
	}
}

func withClose(r *releases) error {
	memory, err := servo.AllocateDMA(servo.DMABytes)
	if err != nil {
		return err
	}
	memory[0] = 1
	ticket := r.take()
	servo.FreeDMA(memory)
	r.released(ticket)
	return nil
}

// live is what a small service holds; it decides how often Go collects.
const (
	live    = 8 << 20
	garbage = 4 << 20 // bytes a second
	buffers = 50      // a second, of each kind
)

// lightService allocates a little until stop is closed.
func lightService(stop <-chan struct{}) {
	held := make([][]byte, live/4096)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for i := 0; ; {
		select {
		case <-stop:
			return
		case <-ticker.C:
			for n := 0; n < garbage/100/4096; n++ {
				held[i%len(held)] = make([]byte, 4096)
				i++
			}
		}
	}
}

// released is the outcome of one way.
type released struct {
	name    string
	delays  latencies
	waiting int
	buffers int
}

// watchReleases frees buffers in several ways side by side and returns what came of
// it, and the time between collections.
func watchReleases(ways []release, d time.Duration) (out []released, cycle time.Duration, err error) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { defer wg.Done(); lightService(stop) }()
	books := make([]*releases, len(ways))
	var failed atomic.Pointer[error]
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	for i, way := range ways {
		i, way := i, way
		books[i] = new(releases)
		wg.Add(1)
		go func() {
			defer wg.Done()
			ticker := time.NewTicker(time.Second / buffers)
			defer ticker.Stop()
			for {
				select {
				case <-stop:
					return
				case <-ticker.C:
					if err := way.use(books[i]); err != nil {
						failed.Store(&err)
						return
					}
				}
			}
		}()
	}
	time.Sleep(d)
	for i, way := range ways {
		delays, waiting := books[i].result()
		out = append(out, released{way.name, delays, waiting, len(delays)})
	}
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	close(stop)
	wg.Wait()
	if p := failed.Load(); p != nil {
		return nil, 0, *p
	}
	if n := after.NumGC - before.NumGC; n > 0 {
		cycle = took / time.Duration(n)
	}
	// What still waits is freed, and the next measurement starts without it.
	for i := 0; i < 100; i++ {
		rest := 0
		for _, b := range books {
			_, waiting := b.result()
			rest += waiting
		}
		if rest == 0 {
			break
		}
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	return out, cycle, nil
}

func writeRelease(w io.Writer, e effort) error {
	fmt.Fprintf(w, "\n## D5: release of DMA buffers\n")
	ways := []release{{"finalizer", withFinalizer(0)}}
	ways = append(ways, cleanups...)
	ways = append(ways, release{"`Close`", withClose})
	found, cycle, err := watchReleases(ways, e.time(20*time.Second))
	if err != nil {
		return err
	}
	slow, _, err := watchReleases([]release{{"finalizer that waits for the drive (" + servo.DriveCycle.String() + ")", withFinalizer(servo.DriveCycle)}}, e.time(20*time.Second))
	if err != nil {
		return err
	}
	rows := [][]string{{"released by", "buffers", "median", "p99", "longest", "still waiting at the end"}}
	for _, f := range append(found, slow...) {
		rows = append(rows, []string{f.name, strconv.Itoa(f.buffers), nanos(f.delays.quantile(0.5)), nanos(f.delays.quantile(0.99)), nanos(f.delays.quantile(1)), strconv.Itoa(f.waiting)})
	}
	table(w, rows...)
	gc := "there was no collection"
	if cycle > 0 {
		gc = "it collected every " + nanos(float64(cycle))
	}
	fmt.Fprintf(w, "A service that holds %s and allocates %s a second, with %d buffers of %s a second of each kind; %s.\n", size(live), size(garbage), buffers, size(servo.DMABytes), gc)
	fmt.Fprintf(w, `The document says seconds to minutes by finalizer, at once by `+"`Close`"+`. Measured: a finalizer or a cleanup comes
with the next collection, so the delay is the time between collections, whatever that is; one that allocates
almost nothing waits for the collection that Go forces every two minutes. `+"`Close`"+` is at once. Minutes come from
finalizers that wait: all of a process run in one goroutine, so %d a second that each take %s leave %d of
%d waiting after %s, and more with each second. None of this memory is in Go's heap profile.
`, buffers, servo.DriveCycle, slow[0].waiting, slow[0].buffers, e.time(20*time.Second))
	return nil
}
