package memtrace

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Tracer reports what its process allocates. [Start] makes one.
type Tracer struct {
	name     string
	interval time.Duration
	least    int64
	longest  time.Duration
	stacks   bool
	stats    bool
	writer   io.Writer

	stop    chan struct{}
	stopped chan struct{}
	once    sync.Once
	leave   []func()
}

// Option changes what [Start] does.
type Option func(*Tracer)

// WithInterval sets the time between two reports; 30 seconds by default, at least
// 100 ms.
func WithInterval(d time.Duration) Option {
	return func(t *Tracer) { t.interval = max(d, 100*time.Millisecond) }
}

// WithThreshold sets how many bytes a stack must have newly allocated in an interval
// to be reported; 100 KiB by default.
func WithThreshold(bytes int64) Option { return func(t *Tracer) { t.least = max(bytes, 1) } }

// WithWriter sets where reports go; standard error by default. What it cannot write
// is lost.
func WithWriter(w io.Writer) Option { return func(t *Tracer) { t.writer = w } }

// WithStacks adds all frames of each reported stack.
func WithStacks() Option { return func(t *Tracer) { t.stacks = true } }

// WithMemStats adds a line of runtime.MemStats to each report. Reading them stops the
// world (see BenchmarkReadMemStats); without this option nothing does.
func WithMemStats() Option { return func(t *Tracer) { t.stats = true } }

// WithLongestScope sets after what time a [Tag] that is still open is reported as
// never closed; ten minutes by default.
func WithLongestScope(d time.Duration) Option { return func(t *Tracer) { t.longest = d } }

// Start begins to trace the process under a name. At each interval it writes one line
// for every stack that newly allocated more than the threshold, 50 at most:
//
//	[2024-06-15T14:22:30Z] ALLOCATED 128.4KB @ github.com/your-org/nc/core.(*TaskRunner).Run.func1 (task_runner.go:87)
//
// The function is the first on the stack that belongs neither to the runtime nor to
// the standard library. The figures come from the runtime's own heap profiler, which
// samples one allocation in about 512 KiB (runtime.MemProfileRate) and tells at a
// collection what happened until the one before. A sampling error above 10 % is shown
// (±, one standard deviation), and so is the tag of a [Do] within the 32 frames that the
// runtime tells of a stack.
//
// While at least one tracer runs, garbage collections are kept for `memtrace watch`
// (see [Handler]).
func Start(name string, options ...Option) *Tracer {
	t := &Tracer{
		name:     name,
		interval: 30 * time.Second,
		least:    100 << 10,
		longest:  10 * time.Minute,
		writer:   os.Stderr,
		stop:     make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	for _, option := range options {
		option(t)
	}
	t.leave = append(t.leave, keepEvents(name))
	allocated := newAllocations()
	go t.run(allocated)
	return t
}

// stopPatience is how long the last report may take.
const stopPatience = 2 * time.Second

// Stop ends the trace with a last report, for which it waits two seconds at most. It may
// be called more than once.
func (t *Tracer) Stop() {
	t.once.Do(func() {
		close(t.stop)
		select {
		case <-t.stopped:
		case <-time.After(stopPatience):
			// A writer that hangs must not keep the service from its end.
		}
		for _, leave := range t.leave {
			leave()
		}
	})
}

func (t *Tracer) run(allocated *allocations) {
	defer close(t.stopped)
	seen := make(map[*atomic.Uint64]watchedScope)
	ticker := time.NewTicker(t.interval)
	defer ticker.Stop()
	for {
		var now time.Time
		last := false
		select {
		case now = <-ticker.C:
		case <-t.stop:
			now, last = time.Now(), true
		}
		t.report(now, allocated, seen)
		if last {
			return
		}
	}
}

func (t *Tracer) report(now time.Time, allocated *allocations, seen map[*atomic.Uint64]watchedScope) {
	stamp := now.UTC().Format(time.RFC3339)
	// One write for each report: lines of several tracers do not mix.
	var text []byte
	line := func(format string, args ...any) { text = fmt.Appendf(text, "["+stamp+"] "+format+"\n", args...) }
	sites := allocated.since(t.least)
	rest, others := 0.0, 0
	for _, site := range sites[min(maxLines, len(sites)):] {
		rest, others = rest+site.bytes, others+1
	}
	for _, site := range sites[:len(sites)-others] {
		line("%s", site.line())
		if t.stacks {
			for _, frame := range site.frames() {
				text = fmt.Appendf(text, "    %s\n", frame)
			}
		}
	}
	if others > 0 {
		line("ALLOCATED %s more at %d other stacks", size(rest), others)
	}
	neverClosed(now.UnixNano(), int64(t.longest), seen, func(name string, age int64) {
		line("SCOPE %q open for %s: is its Untag missing?", name, time.Duration(age).Round(time.Second))
	})
	misuse.report(func(what string) { line("SCOPE %s", what) })
	if t.stats {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		line("MEMSTATS HeapAlloc %s, HeapInuse %s, NextGC %s, NumGC %d, PauseTotal %s",
			size(float64(m.HeapAlloc)), size(float64(m.HeapInuse)), size(float64(m.NextGC)), m.NumGC, time.Duration(m.PauseTotalNs))
	}
	if len(text) > 0 {
		// A log that is full must not stop the service.
		_, _ = t.writer.Write(text)
	}
}

// maxLines bounds the stacks of a report: one sampled object stands for half a megabyte,
// so that in a busy service thousands pass the threshold.
const maxLines = 50

// size renders bytes as the report does: 128.4KB, 2.0MB (powers of 1024).
func size(bytes float64) string {
	unit := "B"
	for _, larger := range []string{"KB", "MB", "GB", "TB"} {
		if bytes < 1024 {
			break
		}
		bytes, unit = bytes/1024, larger
	}
	if unit == "B" {
		return fmt.Sprintf("%.0fB", bytes)
	}
	return fmt.Sprintf("%.1f%s", bytes, unit)
}
