package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"sync"
	"time"

	"cnc/internal/fault"
	"cnc/internal/machine"
	"cnc/internal/scheduler"
)

// dispatch gives a machine ten commands a second and returns the goroutines that are
// left a minute, and how many commands timed out.
func dispatch(f *fault.Fault, d time.Duration) (perMinute float64, s scheduler.Stats, err error) {
	const timeout, period = 250 * time.Millisecond, 100 * time.Millisecond
	m := machine.New()
	f.SetOnset(fault.Hang, m.Hang)
	f.Arm(context.Background())
	sched := scheduler.New(m, timeout, f)
	defer func() { // the next measurement starts without what is left of this one
		m.Close()
		for sched.Stats().InFlight > 0 {
			time.Sleep(time.Millisecond)
		}
	}()
	before := goroutines()
	var wg sync.WaitGroup
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	failed := make(chan error, 1)
	began := time.Now()
	for n := 1; time.Since(began) < d; n++ {
		cmd := &scheduler.Command{Line: n, Request: machine.Request{Code: machine.SyncCode}}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := sched.Schedule(context.Background(), cmd); err != nil && !errors.Is(err, scheduler.ErrTimeout) {
				select {
				case failed <- err:
				default:
				}
			}
		}()
		<-ticker.C
	}
	took := time.Since(began)
	wg.Wait()
	left := goroutines() - before
	select {
	case err = <-failed:
	default:
	}
	return float64(left) / took.Minutes(), sched.Stats(), err
}

// goroutines returns their number once it has not changed for a while.
func goroutines() int {
	n, since := runtime.NumGoroutine(), time.Now()
	for began := since; time.Since(since) < 100*time.Millisecond && time.Since(began) < 5*time.Second; time.Sleep(time.Millisecond) {
		if now := runtime.NumGoroutine(); now != n {
			n, since = now, time.Now()
		}
	}
	return n
}

func writeGoroutines(w io.Writer, e effort) error {
	fmt.Fprintf(w, "\n## D2: commands to a machine that hangs\n")
	rows := [][]string{{"scheduler", "commands", "timed out", "goroutines a minute more"}}
	var leaking float64
	for _, c := range []struct {
		name string
		f    *fault.Fault
	}{
		{"normal: the machine answers", fault.New(fault.None, 0, 1)},
		{"leaking: the machine hangs, nothing cancels", fault.New(fault.Hang, 0, 1)},
		{"fixed: the machine hangs, the context cancels", fault.New(fault.Hang, 0, 1).WithFix()},
	} {
		perMinute, stats, err := dispatch(c.f, e.time(5*time.Second))
		if err != nil {
			return err
		}
		rows = append(rows, []string{c.name, strconv.FormatUint(stats.Scheduled, 10), strconv.FormatUint(stats.TimedOut, 10), fmt.Sprintf("%.0f", perMinute)})
		if c.f.Active(fault.Hang) {
			leaking = perMinute
		}
	}
	table(w, rows...)
	fmt.Fprintf(w, "The document says more than 120 a minute for the leak. Measured: each command that times out leaves one\ngoroutine, so ten commands a second leave %.0f a minute; the context ends all of them.\n", leaking)
	return nil
}
