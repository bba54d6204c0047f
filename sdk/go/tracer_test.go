package memtrace

import (
	"bytes"
	"context"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// locked is a writer that may be read while it is written to.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

//go:noinline
func allocate(n int) {
	for i := 0; i < n; i++ {
		sink = make([]byte, 16<<10)
	}
}

var lineForm = regexp.MustCompile(`^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\] ALLOCATED ([\d.]+)([KMG]?B)( ±[\d.]+[KMG]?B)? @ (\S+) \((\w+\.go):(\d+)\)( tag=(\S+))?$`)

// allocateIn allocates in the scope of a tag; the test's own package is ours, so the
// culprit is sought beyond it: this closure is called through a foreign function.
func TestReportNamesStacksThatAllocate(t *testing.T) {
	out := new(locked)
	tracer := Start("test", WithInterval(time.Hour), WithWriter(out), WithStacks(), WithMemStats())
	Do(context.Background(), "G001-M17", func(context.Context) { allocate(4096) }) // 64 MB
	for i := 0; i < 3; i++ {
		runtime.GC()
	}
	tracer.Stop()
	tracer.Stop()
	var found []string
	for _, line := range strings.Split(out.String(), "\n") {
		if m := lineForm.FindStringSubmatch(line); m != nil && strings.Contains(m[8], "G001-M17") {
			found = m
		}
	}
	if found == nil {
		t.Fatalf("no line of the tag in\n%s", out)
	}
	n, _ := strconv.ParseFloat(found[1], 64)
	if found[2] != "MB" || n < 34 || n > 94 {
		t.Errorf("%s%s for 64 MB", found[1], found[2])
	}
	if !strings.Contains(out.String(), "memtrace.allocate (tracer_test.go:") || !strings.Contains(out.String(), "MEMSTATS HeapAlloc ") {
		t.Errorf("no stack or no statistics in\n%s", out)
	}
}

//go:noinline
func down(depth int) {
	if depth > 0 {
		down(depth - 1)
		return
	}
	for i := 0; i < 64; i++ {
		sink = make([]byte, 1<<20)
	}
}

//go:noinline
func oneWay() { down(60) }

//go:noinline
func otherWay() { down(60) }

// The runtime knows stacks that it tells only the same 32 frames of.
func TestDeepStacksAreNotToldTwice(t *testing.T) {
	a := newAllocations()
	oneWay()
	otherWay()
	told := 0.0
	for i := 0; i < 8; i++ {
		runtime.GC()
		for _, site := range a.since(1) {
			if strings.Contains(strings.Join(site.frames(), " "), "memtrace.down ") {
				told += site.bytes
			}
		}
	}
	// Each megabyte is sampled with a probability of 86 %: ± 5 MB.
	if told < 104<<20 || told > 152<<20 {
		t.Errorf("%s told of 128 MB", size(told))
	}
}

func TestReportIsBounded(t *testing.T) {
	out := new(locked)
	a := newAllocations()
	for path := 0; path < 256; path++ {
		for i := 0; i < 4; i++ {
			manyWays(path, 8)
		}
	}
	for i := 0; i < 3; i++ {
		runtime.GC()
	}
	tracer := &Tracer{interval: time.Hour, least: 1, longest: time.Hour, writer: out}
	tracer.report(time.Now(), a, nil)
	lines := strings.Count(out.String(), "\n")
	if lines != maxLines+1 || !strings.Contains(out.String(), " more at ") {
		t.Errorf("%d lines:\n%s", lines, out)
	}
}

//go:noinline
func manyWays(path, depth int) {
	switch {
	case depth == 0:
		sink = make([]byte, 1<<20)
	case path&1 == 0:
		manyWays(path>>1, depth-1)
	default:
		manyWays(path>>1, depth-1)
	}
}

// hung is a writer that never comes back.
type hung struct{}

func (hung) Write([]byte) (int, error) { select {} }

func TestStopDoesNotWaitForAHungWriter(t *testing.T) {
	tracer := Start("hung", WithInterval(time.Hour), WithWriter(hung{}), WithMemStats())
	stopped := make(chan struct{})
	go func() {
		tracer.Stop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(10 * stopPatience):
		t.Error("it waits")
	}
}

func TestReportIsSilentWithoutNews(t *testing.T) {
	out := new(locked)
	runtime.GC()
	runtime.GC()
	tracer := Start("quiet", WithInterval(time.Hour), WithWriter(out), WithThreshold(64<<20))
	tracer.Stop()
	if out.String() != "" {
		t.Errorf("said %s", out)
	}
}

func TestMistakesAreReported(t *testing.T) {
	out := new(locked)
	tracer := Start("mistakes", WithInterval(100*time.Millisecond), WithLongestScope(200*time.Millisecond), WithWriter(out), WithThreshold(1<<40))
	Untag()
	Tag("long job")
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(out.String(), "long job") && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	Untag()
	tracer.Stop()
	for _, want := range []string{`SCOPE "long job" open for `, "SCOPE 1 × Untag without a Tag in the same goroutine, first in memtrace.TestMistakesAreReported (tracer_test.go:"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

func TestSizes(t *testing.T) {
	for bytes, want := range map[float64]string{0: "0B", 1023: "1023B", 131482: "128.4KB", 2 << 20: "2.0MB", 3 << 40: "3.0TB", 5 << 50: "5120.0TB"} {
		if got := size(bytes); got != want {
			t.Errorf("%v: %s, not %s", bytes, got, want)
		}
	}
}

func TestStandardFunctions(t *testing.T) {
	for function, want := range map[string]bool{
		"runtime.mallocgc": true, "encoding/json.(*Decoder).Decode": true, "internal/runtime/maps.newTable": true,
		"main.main": false, "github.com/your-org/nc/core.(*TaskRunner).Run.func1": false, "cnc/internal/gcode.newCommand": false,
		"vendor/golang.org/x/net/http2/hpack.(*Encoder).Write": true, "memtrace.Do": false, "type:.eq.x": false,
	} {
		if got := isStandard(function); got != want {
			t.Errorf("%s: %v", function, got)
		}
	}
}
