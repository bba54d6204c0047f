package main

import (
	"context"
	"math"
	"runtime"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"cnc/internal/fault"
)

// start runs the service's workers until the test ends.
func start(t *testing.T, o options) *service {
	t.Helper()
	s, err := newService(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, worker := range s.workers {
		worker := worker
		wg.Add(1)
		go func() {
			defer wg.Done()
			worker(ctx)
		}()
	}
	t.Cleanup(func() {
		stop()
		s.machine.Close()
		wg.Wait()
	})
	return s
}

func leakOptions(t *testing.T, kind fault.Kind) options {
	t.Helper()
	o, err := parseFlags([]string{"-load", "0", "-leak", string(kind), "-leak-after", "0s", "-leak-rate", "12MB"})
	if err != nil {
		t.Fatal(err)
	}
	o.history = 256
	return o
}

// drive runs the traffic until a condition holds, for a second at least, and then
// lets what is on its way end. Nothing runs when it returns, so that the heap can
// be measured exactly.
func drive(t *testing.T, s *service, until func() bool) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.traffic.Run(ctx)
	}()
	time.Sleep(time.Second)
	for deadline := time.Now().Add(2 * time.Minute); !until(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("the traffic is too slow")
			break
		}
	}
	stop()
	<-done
	time.Sleep(400 * time.Millisecond) // more than the timeout of a command
	s.server.Reports.Expire(time.Now().Add(time.Hour))
}

func heapAlloc() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// growth returns the in-use bytes of each stack of the heap profile, by its
// functions.
func growth() map[string]int64 {
	runtime.GC()
	runtime.GC() // the profile is as of the collection before the last
	records := make([]runtime.MemProfileRecord, 1<<14)
	n, ok := runtime.MemProfile(records, false)
	if !ok {
		panic("too many records")
	}
	out := make(map[string]int64)
	for i := range records[:n] {
		var stack []string
		frames := runtime.CallersFrames(records[i].Stack())
		for {
			f, more := frames.Next()
			stack = append(stack, f.Function)
			if !more {
				break
			}
		}
		out[strings.Join(stack, "\n")] += records[i].InUseBytes()
	}
	return out
}

// application returns the functions of the first package of the application on a
// stack, innermost first.
func application(stack string) []string {
	var out []string
	for _, f := range strings.Split(stack, "\n") {
		if !strings.HasPrefix(f, "cnc/") {
			if len(out) > 0 {
				break
			}
			continue
		}
		pkg := func(f string) string {
			slash := strings.LastIndex(f, "/")
			return f[:slash+strings.Index(f[slash:], ".")]
		}
		if len(out) > 0 && pkg(f) != pkg(out[0]) {
			break
		}
		out = append(out, f)
	}
	return out
}

func TestLeaks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	for _, kind := range fault.Kinds {
		kind := kind
		t.Run(string(kind), func(t *testing.T) {
			s, err := newService(leakOptions(t, kind))
			if err != nil {
				t.Fatal(err)
			}
			defer s.machine.Close()
			if tr := s.server.Fault.Truth(7); tr.Since != nil || tr.LeakedBytes != 0 || tr.Leak != kind || tr.PID != 7 {
				t.Fatalf("before the leak: %+v", tr)
			}
			commands := func() bool { return s.server.Cache.Len() >= 2000 }
			drive(t, s, commands)
			s.server.Fault.Arm(context.Background())
			stacks, heap, goroutines := growth(), heapAlloc(), runtime.NumGoroutine()
			drive(t, s, func() bool { return s.server.Fault.Truth(0).LeakedBytes > 30<<20 })
			heap, goroutines = heapAlloc()-heap, runtime.NumGoroutine()-goroutines
			leaked := float64(s.server.Fault.Truth(0).LeakedBytes)
			tolerance := 0.05
			if kind == fault.MapKey || kind == fault.SyncMap {
				tolerance = 0.10
			}
			t.Logf("heap grew by %.0f, leaked %.0f, off by %+.1f %%; %+d goroutines", heap, leaked, 100*(leaked/heap-1), goroutines)
			if math.Abs(leaked/heap-1) > tolerance {
				t.Errorf("the books are off by %+.1f %%", 100*(leaked/heap-1))
			}
			if kind == fault.Goroutine && goroutines < 1500 || kind != fault.Goroutine && goroutines > 50 {
				t.Errorf("%d more goroutines", goroutines)
			}

			// All that grew must be on stacks whose first functions of the
			// application are named in the truth.
			defer runtime.KeepAlive(s)
			truth := s.server.Fault.Truth(0)
			named := make(map[string]bool)
			for _, f := range truth.Functions {
				named[f] = true
			}
			type stackGrowth struct {
				stack string
				bytes int64
			}
			var grown []stackGrowth
			total, known := int64(0), int64(0)
			for stack, bytes := range growth() {
				if bytes -= stacks[stack]; bytes < 64<<10 {
					continue
				}
				grown = append(grown, stackGrowth{stack, bytes})
				total += bytes
				if app := application(stack); len(app) > 0 && named[app[0]] {
					known += bytes
				}
			}
			sort.Slice(grown, func(i, k int) bool { return grown[i].bytes > grown[k].bytes })
			if len(grown) == 0 {
				t.Fatal("nothing grew")
			}
			if app := application(grown[0].stack); len(app) == 0 || !named[app[0]] {
				t.Errorf("the stack that grew most does not name %s:\n%s", truth.Function, grown[0].stack)
			}
			if float64(known) < 0.93*float64(total) {
				t.Errorf("only %d of %d bytes grew where the truth says", known, total)
			}
			for i, g := range grown {
				if i < 6 {
					t.Logf("%9d %s", g.bytes, strings.Join(application(g.stack), " < "))
				}
			}
		})
	}
}

// Without a leak the same traffic must not make the heap grow.
func TestNoLeak(t *testing.T) {
	if testing.Short() {
		t.Skip("takes several seconds")
	}
	s, err := newService(leakOptions(t, fault.None))
	if err != nil {
		t.Fatal(err)
	}
	defer s.machine.Close()
	drive(t, s, func() bool { return s.server.Cache.Len() >= 2000 })
	before := heapAlloc()
	end := time.Now().Add(3 * time.Second)
	drive(t, s, func() bool { return time.Now().After(end) })
	grown := heapAlloc() - before
	if leaked := s.server.Fault.Truth(0).LeakedBytes; grown > 100<<10 || leaked != 0 {
		t.Errorf("the heap grew by %.0f bytes, leaked %d", grown, leaked)
	}
}
