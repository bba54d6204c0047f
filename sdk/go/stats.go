package memtrace

import (
	"math"
	"runtime/metrics"
	"sync"
	"time"
)

// Stats are readings of the runtime's memory gauges.
type Stats struct {
	HeapLive     uint64        `json:"heap_live"`    // bytes that the last collection found alive
	HeapObjects  uint64        `json:"heap_objects"` // bytes of objects, dead ones that were not reclaimed yet included
	HeapGoal     uint64        `json:"heap_goal"`    // bytes at which the next collection should end
	Allocated    uint64        `json:"allocated"`    // bytes allocated since the start
	Freed        uint64        `json:"freed"`        // bytes reclaimed since the start
	Mallocs      uint64        `json:"mallocs"`      // objects allocated since the start
	Frees        uint64        `json:"frees"`        // objects reclaimed since the start
	GoMemory     uint64        `json:"go_memory"`    // bytes that the runtime got from the system and did not give back
	Stacks       uint64        `json:"stacks"`       // bytes of goroutine stacks
	Goroutines   uint64        `json:"goroutines"`
	GCs          uint64        `json:"gcs"`
	GCCPU        time.Duration `json:"gc_cpu"`       // estimated processor time of all collections
	PauseMedian  time.Duration `json:"pause_median"` // of all pauses of collections since the start
	PauseP99     time.Duration `json:"pause_p99"`
	PauseMax     time.Duration `json:"pause_max"`     // upper end of the highest bucket in use
	Finalizers   Backlog       `json:"finalizers"`    // since Go 1.26
	Cleanups     Backlog       `json:"cleanups"`      // since Go 1.26
	LockWait     time.Duration `json:"lock_wait"`     // time that goroutines waited for mutexes, runtime locks included (since Go 1.22)
	ProfileBytes uint64        `json:"profile_bytes"` // bytes of the heap profiler's own tables
}

// Backlog counts finalizers or cleanups since the start of the process.
type Backlog struct {
	Queued   uint64 `json:"queued"`
	Executed uint64 `json:"executed"`
}

// gauges lists what ReadStats reads. Names that a version of Go does not know stay 0.
var gauges = [...]string{
	"/gc/heap/live:bytes",
	"/memory/classes/heap/objects:bytes",
	"/gc/heap/goal:bytes",
	"/gc/heap/allocs:bytes",
	"/gc/heap/frees:bytes",
	"/gc/heap/allocs:objects",
	"/gc/heap/frees:objects",
	"/memory/classes/total:bytes",
	"/memory/classes/heap/released:bytes",
	"/memory/classes/heap/stacks:bytes",
	"/sched/goroutines:goroutines",
	"/gc/cycles/total:gc-cycles",
	"/cpu/classes/gc/total:cpu-seconds",
	"/gc/pauses:seconds",
	"/gc/finalizers/queued:finalizers",
	"/gc/finalizers/executed:finalizers",
	"/gc/cleanups/queued:cleanups",
	"/gc/cleanups/executed:cleanups",
	"/sync/mutex/wait/total:seconds",
	"/memory/classes/profiling/buckets:bytes",
}

// samplesPool keeps what a reading needs, histogram included.
var samplesPool = sync.Pool{New: func() any {
	samples := make([]metrics.Sample, len(gauges))
	for i, name := range gauges {
		samples[i].Name = name
	}
	return &samples
}}

// ReadStats reads the gauges without stopping the world: some microseconds, no
// allocation once warm. runtime.ReadMemStats, which stops it, is slower and disturbs
// (both are measured by BenchmarkReadStats and BenchmarkReadMemStats).
func ReadStats() Stats {
	pooled := samplesPool.Get().(*[]metrics.Sample)
	defer samplesPool.Put(pooled)
	samples := *pooled
	metrics.Read(samples)
	i := -1
	u := func() uint64 {
		i++
		if samples[i].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return samples[i].Value.Uint64()
	}
	seconds := func() time.Duration {
		i++
		if samples[i].Value.Kind() != metrics.KindFloat64 {
			return 0
		}
		return time.Duration(samples[i].Value.Float64() * 1e9)
	}
	var s Stats
	s.HeapLive, s.HeapObjects, s.HeapGoal = u(), u(), u()
	s.Allocated, s.Freed, s.Mallocs, s.Frees = u(), u(), u(), u()
	total, released := u(), u()
	s.GoMemory = total - min(released, total)
	s.Stacks, s.Goroutines, s.GCs = u(), u(), u()
	s.GCCPU = seconds()
	if i++; samples[i].Value.Kind() == metrics.KindFloat64Histogram {
		h := samples[i].Value.Float64Histogram()
		s.PauseMedian, s.PauseP99, s.PauseMax = quantile(h, 0.5), quantile(h, 0.99), quantile(h, 1)
	}
	s.Finalizers.Queued, s.Finalizers.Executed = u(), u()
	s.Cleanups.Queued, s.Cleanups.Executed = u(), u()
	s.LockWait = seconds()
	s.ProfileBytes = u()
	return s
}

// quantile returns the upper end of the bucket that holds the q-quantile; of the last
// bucket, which is open, the lower.
func quantile(h *metrics.Float64Histogram, q float64) time.Duration {
	total := uint64(0)
	for _, n := range h.Counts {
		total += n
	}
	rank, below := uint64(math.Ceil(q*float64(total))), uint64(0)
	for i, n := range h.Counts {
		if below += n; n > 0 && below >= rank {
			end := h.Buckets[i+1]
			if math.IsInf(end, 1) {
				end = h.Buckets[i]
			}
			return time.Duration(end * 1e9)
		}
	}
	return 0
}
