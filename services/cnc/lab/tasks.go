package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"cnc/internal/motion"
)

// axes start their tasks at the same moment, as those of a machine do; so many that
// all processors are busy with it.
const axes = 64

// most is how many starts of an axis are kept.
const most = 1 << 18

// tasks is what starting and stopping motion tasks cost.
type tasks struct {
	start latencies // of Axis.Start, sorted
	wait  float64   // ns that goroutines and the runtime waited for locks, in all
	blame contended // where, in the mutex profile
}

// share is the waiting for the allocator's locks as a share of the time in Start.
func (t tasks) share() string {
	switch {
	case t.blame.lost > 0 && t.blame.lost == t.blame.all:
		return "no stacks"
	case len(t.start) == 0:
		return "no starts"
	}
	return fmt.Sprintf("%.1f %%", 100*t.blame.central/max(1, t.start.mean()*float64(len(t.start))))
}

// startTasks runs some axes at a rate in Hz, or with 0 as fast as they can.
func startTasks(axes int, rate float64, recycle bool, d time.Duration) (tasks, error) {
	runtime.GC()
	mutexes := runtime.SetMutexProfileFraction(1)
	defer runtime.SetMutexProfileFraction(mutexes)
	before, err := contention()
	if err != nil {
		return tasks{}, err
	}
	waited := lockWait()

	ctx, stop := context.WithTimeout(context.Background(), d)
	defer stop()
	found := make([]latencies, axes)
	var wg sync.WaitGroup
	for i := range found {
		i := i
		room := most
		if rate > 0 {
			room = min(most, int(2*rate*d.Seconds())+2)
		}
		found[i] = make(latencies, 0, room)
		wg.Add(1)
		go func() {
			defer wg.Done()
			axis := motion.NewAxis("A"+strconv.Itoa(i), recycle)
			var tick <-chan time.Time
			if rate > 0 {
				ticker := time.NewTicker(time.Duration(float64(time.Second) / rate))
				defer ticker.Stop()
				tick = ticker.C
			}
			for n := 0; ctx.Err() == nil && len(found[i]) < room; n++ {
				began := time.Now()
				task := axis.Start()
				took := time.Since(began)
				if n > 0 || !recycle { // the first of a recycled task is allocated
					found[i] = append(found[i], int64(took))
				}
				task.Plan(float64(n), float64(n+1))
				if tick != nil {
					select {
					case <-tick:
					case <-ctx.Done():
					}
				}
				axis.Stop()
			}
		}()
	}
	wg.Wait()
	t := tasks{wait: 1e9 * (lockWait() - waited)}
	after, err := contention()
	if err != nil {
		return t, err
	}
	for _, l := range found {
		t.start = append(t.start, l...)
	}
	t.start.sort()
	t.blame = contended{after.all - before.all, after.central - before.central, after.lost - before.lost}
	return t, nil
}

// lockWait returns the seconds of waiting for sync.Mutex, sync.RWMutex and, since Go
// 1.22, the runtime's own locks.
func lockWait() float64 {
	s := []metrics.Sample{{Name: "/sync/mutex/wait/total:seconds"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindFloat64 {
		return 0
	}
	return s[0].Value.Float64()
}

// contended is waiting for locks in the mutex profile, in ns: all of it, that in the
// allocator's central lists and page heap, and that without a stack.
type contended struct {
	all, central, lost float64
}

// contention reads the mutex profile. Before Go 1.22 the runtime's locks are not in it;
// until 1.24 they are all one row, runtime._LostContendedRuntimeLock; from 1.25 they
// have the stack of the unlock that others waited for.
func contention() (contended, error) {
	var text bytes.Buffer
	if err := pprof.Lookup("mutex").WriteTo(&text, 1); err != nil {
		return contended{}, err
	}
	var c contended
	ns, perNano, central, lost := 0.0, 1.0, false, false
	end := func() {
		c.all += ns
		if central {
			c.central += ns
		}
		if lost {
			c.lost += ns
		}
		ns, central, lost = 0, false, false
	}
	lines := bufio.NewScanner(&text)
	for lines.Scan() {
		line := lines.Text()
		var n, count float64
		if _, err := fmt.Sscanf(line, "cycles/second=%g", &n); err == nil && n > 0 {
			perNano = n / 1e9
		}
		if got, err := fmt.Sscanf(line, "%g %g @", &n, &count); err == nil && got == 2 {
			end()
			ns = n / perNano
			continue
		}
		central = central || strings.Contains(line, "runtime.(*mcentral).") || strings.Contains(line, "runtime.(*mheap).")
		lost = lost || strings.Contains(line, "runtime._LostContendedRuntimeLock")
	}
	end()
	return c, lines.Err()
}

func writeTasks(w io.Writer, e effort) error {
	fmt.Fprintf(w, "\n## D1: starting and stopping motion tasks\n")
	rows := [][]string{{"axes", "tasks a second on each", "fix", "starts", "mean", "median", "p99", "longest", "all waiting for locks, by the metric", "for mcentral and mheap, by the profile", "share of the time to start"}}
	results := make(map[string]tasks)
	for _, c := range []struct {
		name    string
		axes    int
		rate    float64
		seconds time.Duration
	}{{"1", axes, 1, 6 * time.Second}, {"100", axes, 100, 6 * time.Second}, {"no pause", runtime.GOMAXPROCS(0), 0, 2 * time.Second}} {
		for _, recycle := range []bool{false, true} {
			t, err := startTasks(c.axes, c.rate, recycle, e.time(c.seconds))
			if err != nil {
				return err
			}
			fix := "none"
			if recycle {
				fix = "recycle"
			}
			rows = append(rows, []string{strconv.Itoa(c.axes), c.name, fix, strconv.Itoa(len(t.start)), nanos(t.start.mean()), nanos(t.start.quantile(0.5)),
				nanos(t.start.quantile(0.99)), nanos(t.start.quantile(1)), nanos(t.wait), nanos(t.blame.central), t.share()})
			results[c.name+" "+fix] = t
		}
	}
	table(w, rows...)
	slow, fast, full := results["1 none"], results["100 none"], results["no pause none"]
	fmt.Fprintf(w, `The document says 83 ns at 1 Hz and 412 ns at 100 Hz, five times as much, and that `+"`mcentral.lock`"+` is held 2.1 %% and
37.6 %% of the time. Measured: %s and %s (median; mean %s and %s), %.1f times as much by the median. A task
that recycles its memory takes %s at 100 Hz, most of it to read the clock, and produces no garbage.
Waiting for the locks of `+"`mcentral` and `mheap`"+` is %s of the time to start at 1 Hz, %s at 100 Hz and %s
without a pause, on %d cores. All waiting for locks includes that of the scheduler.
`, nanos(slow.start.quantile(0.5)), nanos(fast.start.quantile(0.5)), nanos(slow.start.mean()), nanos(fast.start.mean()),
		fast.start.quantile(0.5)/max(1, slow.start.quantile(0.5)), nanos(results["100 recycle"].start.quantile(0.5)), slow.share(), fast.share(), full.share(), runtime.NumCPU())
	fmt.Fprintf(w, `83 ns is out of reach for this `+"`NewMotionTask`"+`: 8 KiB fill a span of their own, so each asks `+"`mcentral`"+` for one.

Go has no measure of how long `+"`mcentral.lock`"+` is held. What there is: `+"`/sync/mutex/wait/total:seconds`"+` counts
waiting, since Go 1.22 for the runtime's own locks too; it times one wait in eight and multiplies, so few waits make
a wild number. The mutex profile has these locks since 1.22, as `+"`runtime._LostContendedRuntimeLock`"+` without their stacks
(1.22 to 1.24 give stacks with `+"`GODEBUG=runtimecontentionstacks=1`"+`, with another meaning), and from 1.25 with the
stack of the unlock that others waited for.
`)
	return nil
}
