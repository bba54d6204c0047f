package memtrace_test

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"runtime"
	"time"

	"memtrace"
)

// TaskRunner stands for a service's own code.
type TaskRunner struct{ buffers [][]byte }

// Run keeps 64 MB.
func (r *TaskRunner) Run() {
	for i := 0; i < 1024; i++ {
		r.buffers = append(r.buffers, make([]byte, 64<<10))
	}
}

// A tracer reports the stacks that newly allocated more than 100 KiB.
func Example() {
	var out bytes.Buffer // a service keeps the default, standard error
	tracer := memtrace.Start("nc-controller", memtrace.WithInterval(30*time.Second), memtrace.WithWriter(&out))

	runner := new(TaskRunner)
	runner.Run()
	runtime.GC() // the heap profile tells what was before the last collection
	runtime.GC()
	tracer.Stop()

	// Time, size and line differ from run to run.
	line := regexp.MustCompile(`(?m)^\[\S+Z\] ALLOCATED [\d.]+MB( ±[\d.]+MB)? @ (\S*\(\*TaskRunner\)\.Run) \((\w+\.go):\d+\)$`)
	found := line.FindStringSubmatch(out.String())
	fmt.Println(found[2], found[3])
	// Output: memtrace_test.(*TaskRunner).Run example_test.go
}

// Each job runs under its tag; the heap profile tells what each tag holds.
func ExampleDo() {
	for _, block := range []string{"G001-M17", "G002-M03"} {
		memtrace.Do(context.Background(), block, func(ctx context.Context) {
			// parse and run the block
			fmt.Println("running", block)
		})
	}
	// Output:
	// running G001-M17
	// running G002-M03
}

// A scope costs some tens of nanoseconds: it may stand in the innermost loop.
func ExampleTag() {
	parse := func(line string) int {
		memtrace.Tag(line[:3])
		defer memtrace.Untag()
		return len(line)
	}
	fmt.Println(parse("G01X10.5F200"))
	// Output: 12
}

// Every collection, with what it found alive and gave back.
func ExampleOnGC() {
	events := make(chan memtrace.GCEvent, 16)
	cancel := memtrace.OnGC(func(e memtrace.GCEvent) {
		select {
		case events <- e:
		default: // nobody reads
		}
	})
	defer cancel()
	runtime.GC()
	e := <-events
	fmt.Println(e.N > 0, e.Pause > 0, !e.End.IsZero())
	// Output: true true true
}
