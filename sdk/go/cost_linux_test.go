package memtrace

import (
	"runtime"
	"syscall"
	"testing"
	"time"
)

// threadCPU is the processor time of the calling thread.
func threadCPU() time.Duration {
	const thread = 1 // RUSAGE_THREAD
	var usage syscall.Rusage
	if err := syscall.Getrusage(thread, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

//go:noinline
func left(path, depth int) { branch(path>>1, depth-1) }

//go:noinline
func right(path, depth int) { branch(path>>1, depth-1) }

// branch allocates 4 KiB at one of 2^depth stacks.
func branch(path, depth int) {
	switch {
	case depth == 0:
		sink = make([]byte, 4<<10)
	case path&1 == 0:
		left(path, depth)
	default:
		right(path, depth)
	}
}

// BenchmarkIntervalReport measures a tracer on a service that allocates 200 MB/s at
// 1,024 stacks: the processor time of a report as a share of 30 s, and that of
// following the collections as a share of the time they took place in.
func BenchmarkIntervalReport(b *testing.B) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for path, begun, done := 0, time.Now(), 0.0; ; {
			select {
			case <-stop:
				return
			default:
			}
			// A machine too busy for the rate must not keep us from the end.
			for i := 0; i < 256 && done < 200e6*time.Since(begun).Seconds(); i++ {
				branch(path, 10)
				path, done = path+1, done+4<<10
			}
			time.Sleep(100 * time.Microsecond)
		}
	}()
	out := new(locked)
	tracer := &Tracer{interval: 30 * time.Second, least: 100 << 10, longest: time.Hour, writer: out}
	allocated := newAllocations()
	time.Sleep(time.Second)
	allocated.since(1 << 60)

	reader, cpuOfGC, gcs := newGCReader(), time.Duration(0), 0
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var cpu time.Duration
	begun, before := time.Now(), ReadStats()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		for j := 0; j < 10; j++ {
			time.Sleep(50 * time.Millisecond)
			before := threadCPU()
			reader.read(func(GCEvent) { gcs++ })
			cpuOfGC += threadCPU() - before
		}
		before := threadCPU()
		tracer.report(time.Now(), allocated, nil)
		cpu += threadCPU() - before
	}
	b.StopTimer()
	close(stop)
	<-stopped
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "µs-CPU/report")
	b.ReportMetric(100*cpu.Seconds()/float64(b.N)/30, "%CPU-at-30s")
	b.ReportMetric(100*cpuOfGC.Seconds()/time.Since(begun).Seconds(), "%CPU-of-GC-events")
	b.ReportMetric(float64(gcs)/time.Since(begun).Seconds(), "GCs/s")
	b.ReportMetric(float64(ReadStats().Allocated-before.Allocated)/time.Since(begun).Seconds()/1e6, "MB/s")
	b.ReportMetric(float64(len(allocated.seen)), "buckets")
	b.ReportMetric(float64(len(out.String()))/float64(b.N), "bytes/report")
}
