package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http/httptest"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cnc/internal/fault"
	"cnc/internal/gcode"
	"cnc/internal/load"
	"cnc/internal/motion"
	"memtrace"
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

func leakOptions(t *testing.T, kind fault.Kind, more ...string) options {
	t.Helper()
	args := []string{"-load", "0", "-leak", string(kind), "-leak-after", "0s", "-leak-rate", "12MB"}
	if kind == fault.Tag {
		// Each job allocates as much, and with each allocation in the profile that is slow.
		args = append(args, "-tagged-jobs", "3", "-leak-rate", "3MB")
	}
	o, err := parseFlags(append(args, more...))
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

// warm fills what fills once: all commands of the stream are in the cache, and the
// rest of the traffic has run.
func warm(t *testing.T, s *service) {
	t.Helper()
	for w := load.NewWriter(1); s.server.Cache.Len() < 2000; {
		if _, err := s.server.Cache.Lookup(w.Next()); err != nil {
			t.Fatal(err)
		}
	}
	drive(t, s, func() bool { return true })
}

// collect runs the collector twice. The commands in the parser's pool are used before,
// as they are in a service that is at work: else they would be collected.
func collect(s *service) {
	for i := 0; i < 2; i++ {
		useCommands(s, load.Probes)
		runtime.GC()
	}
}

// useCommands takes n commands out of the parser's pool at the same time.
func useCommands(s *service, n int) {
	if n == 0 {
		return
	}
	if err := s.traffic.Parser.Parse("X1", func(*gcode.GCodeCommand) { useCommands(s, n-1) }); err != nil {
		panic(err)
	}
}

func heapAlloc(s *service) float64 {
	var m runtime.MemStats
	collect(s)
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// growth returns the in-use bytes of each stack of the heap profile, by its
// functions.
func growth(s *service) map[string]int64 {
	collect(s) // the profile is as of the collection before the last
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

// tagOf returns the tag whose number the frames of memtrace.Do spell on a stack.
func tagOf(t *testing.T, stack string) string {
	t.Helper()
	frames := regexp.MustCompile(`memtrace\.tagLo(\d\d)\nmemtrace\.tagHi(\d\d)`).FindStringSubmatch(stack)
	if frames == nil {
		return ""
	}
	low, _ := strconv.Atoi(frames[1]) // two digits
	high, _ := strconv.Atoi(frames[2])
	answer := httptest.NewRecorder()
	memtrace.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/debug/memtrace/tags", nil))
	var page struct{ Names map[int]string }
	if err := json.Unmarshal(answer.Body.Bytes(), &page); err != nil {
		t.Fatal(err)
	}
	return page.Names[64*high+low]
}

// resident returns the bytes of the process that are in memory and not Go's, or false
// where the system does not tell, or the race detector's memory is among them.
func resident(t *testing.T) (float64, bool) {
	t.Helper()
	if raceDetector {
		return 0, false
	}
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	var size, pages float64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		t.Fatal(err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return pages*float64(os.Getpagesize()) - float64(m.Sys-m.HeapReleased), true
}

func TestLeaks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	for _, kind := range fault.Kinds {
		kind := kind
		t.Run(string(kind), func(t *testing.T) {
			if kind == fault.Pool && raceDetector {
				t.Skip("under the race detector a sync.Pool drops objects at random")
			}
			if kind == fault.Finalizer {
				testNativeLeak(t)
				return
			}
			if kind == fault.Pool {
				// With more the pool may hold commands that collect does not get.
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			}
			s, err := newService(leakOptions(t, kind))
			if err != nil {
				t.Fatal(err)
			}
			defer s.machine.Close()
			if tr := s.server.Fault.Truth(7); tr.Since != nil || tr.LeakedBytes != 0 || tr.Leak != kind || tr.PID != 7 {
				t.Fatalf("before the leak: %+v", tr)
			}
			warm(t, s)
			s.server.Fault.Arm(context.Background())
			stacks, heap, goroutines := growth(s), heapAlloc(s), runtime.NumGoroutine()
			enough := int64(30 << 20)
			if kind == fault.Tag {
				enough = 6 << 20
			}
			drive(t, s, func() bool { return s.server.Fault.Truth(0).LeakedBytes > enough })
			heap, goroutines = heapAlloc(s)-heap, runtime.NumGoroutine()-goroutines
			leaked := float64(s.server.Fault.Truth(0).LeakedBytes)
			tolerance := 0.05
			if kind == fault.MapKey || kind == fault.SyncMap || kind == fault.Pool {
				tolerance = 0.10
			}
			t.Logf("heap grew by %.0f, leaked %.0f, off by %+.1f %%; %+d goroutines", heap, leaked, 100*(leaked/heap-1), goroutines)
			if math.Abs(leaked/heap-1) > tolerance {
				t.Errorf("the books are off by %+.1f %%", 100*(leaked/heap-1))
			}
			if blocked := kind == fault.Goroutine || kind == fault.Hang; blocked && goroutines < 1500 || !blocked && goroutines > 50 {
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
			for stack, bytes := range growth(s) {
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
			if kind == fault.Tag {
				if truth.Tag == "" || tagOf(t, grown[0].stack) != truth.Tag {
					t.Errorf("the stack that grew most is of the tag %q, want %q", tagOf(t, grown[0].stack), truth.Tag)
				}
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

// Buffers that wait for their finalizer are in the process and not in Go's heap.
func testNativeLeak(t *testing.T) {
	s, err := newService(leakOptions(t, fault.Finalizer))
	if err != nil {
		t.Fatal(err)
	}
	defer s.machine.Close()
	leaked := func() int64 { return s.server.Fault.Truth(0).LeakedBytes }
	warm(t, s)
	s.server.Fault.Arm(context.Background())
	heap := heapAlloc(s)
	before, known := resident(t)
	drive(t, s, func() bool { return leaked() > 30<<20 })
	heap = heapAlloc(s) - heap
	after, _ := resident(t)
	backlog := leaked()
	t.Logf("the process grew by %.0f, the heap by %.0f, leaked %d", after-before, heap, backlog)
	if heap > float64(backlog)/10 {
		t.Errorf("the heap grew by %.0f", heap)
	}
	if off := (after - before) / float64(backlog); known && (off < 0.9 || off > 1.2) {
		t.Errorf("the process grew by %.0f, leaked %d", after-before, backlog)
	}
	// The finalizers do their work, but one after the other.
	for end := time.Now().Add(10 * time.Second); leaked() == backlog; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no finalizer runs")
		}
		runtime.GC()
	}
	if rest := leaked(); rest < backlog/2 {
		t.Errorf("%d of %d bytes were left at once", rest, backlog)
	}
}

// With its fix no situation makes anything grow, and the situation is there.
func TestFixes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	for _, kind := range fault.Kinds {
		kind := kind
		t.Run(string(kind), func(t *testing.T) {
			s, err := newService(leakOptions(t, kind, "-fix"))
			if err != nil {
				t.Fatal(err)
			}
			defer s.machine.Close()
			warm(t, s)
			s.server.Fault.Arm(context.Background())
			if hung := s.machine.State().Hung; hung != (kind == fault.Hang) {
				t.Errorf("the machine hangs: %v", hung)
			}
			heap, goroutines := heapAlloc(s), runtime.NumGoroutine()
			before, known := resident(t)
			drive(t, s, func() bool { return true }) // for a second
			// A second's leak is 12 MB (tag: 3 MB).
			if grown := heapAlloc(s) - heap; grown > 300<<10 {
				t.Errorf("the heap grew by %.0f bytes", grown)
			}
			if after, _ := resident(t); known && after-before > 6<<20 {
				t.Errorf("the process grew by %.0f bytes beside the heap", after-before)
			}
			if n := runtime.NumGoroutine() - goroutines; n > 10 {
				t.Errorf("%d more goroutines", n)
			}
			if tr := s.server.Fault.Truth(0); !tr.Fix || tr.Since == nil || tr.LeakedBytes != 0 || tr.LeakedObjects != 0 {
				t.Errorf("%+v", tr)
			}
			if n := s.server.Scheduler.Stats().TimedOut; kind == fault.Hang && n == 0 {
				t.Error("no command timed out")
			}
			runtime.KeepAlive(s)
		})
	}
}

// Tasks that start and stop allocate, and with their fix they do not; nothing is kept.
func TestTasks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes several seconds")
	}
	allocated := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.TotalAlloc
	}
	for _, c := range []struct {
		args []string
		hot  string
	}{
		{[]string{"-tasks", "100", "-axes", "8"}, "cnc/internal/motion.NewMotionTask"},
		{[]string{"-tasks", "100", "-axes", "8", "-fix"}, ""},
	} {
		o, err := parseFlags(append(c.args, "-load", "0"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := newService(o)
		if err != nil {
			t.Fatal(err)
		}
		heap, before := heapAlloc(s), allocated()
		const much = 2 << 20 // the first tasks of all axes are 64 KB
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			motion.Run(ctx, o.tasks) // only the tasks
		}()
		time.Sleep(time.Second)
		for end := time.Now().Add(time.Minute); c.hot != "" && allocated()-before < much && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		stop()
		<-done
		if n := allocated() - before; n >= much != (c.hot != "") {
			t.Errorf("%q: allocated %d bytes", c.args, n)
		}
		if grown := heapAlloc(s) - heap; grown > 300<<10 {
			t.Errorf("%q: the heap grew by %.0f bytes", c.args, grown)
		}
		if tr := s.server.Fault.Truth(0); tr.Hot != c.hot || tr.Leak != fault.None {
			t.Errorf("%q: %+v", c.args, tr)
		}
		s.machine.Close()
		runtime.KeepAlive(s)
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
	warm(t, s)
	before := heapAlloc(s)
	end := time.Now().Add(3 * time.Second)
	drive(t, s, func() bool { return time.Now().After(end) })
	grown := heapAlloc(s) - before
	if leaked := s.server.Fault.Truth(0).LeakedBytes; grown > 100<<10 || leaked != 0 {
		t.Errorf("the heap grew by %.0f bytes, leaked %d", grown, leaked)
	}
}
