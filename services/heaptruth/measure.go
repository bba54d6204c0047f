package main

import (
	"runtime"
	"runtime/debug"
	"unsafe"
)

// Nothing about the allocator is hard coded: what an object takes is measured with it.

// tally is a number of objects and their bytes, as the allocator rounds them.
type tally struct {
	Objects uint64 `json:"objects"`
	Bytes   uint64 `json:"bytes"`
}

func (t *tally) add(n, each uint64) {
	t.Objects += n
	t.Bytes += n * each
}

func (t tally) minus(o tally) tally {
	return tally{t.Objects - o.Objects, t.Bytes - o.Bytes}
}

// sink makes what is measured escape to the heap.
var sink unsafe.Pointer

// stats is not on the stack, so that reading it allocates nothing.
var stats runtime.MemStats

// allocated is what build allocates, whatever becomes of it. The collector must be off and
// no other goroutine may allocate.
func allocated(build func()) tally {
	runtime.ReadMemStats(&stats)
	objects, bytes := stats.Mallocs, stats.TotalAlloc
	build()
	runtime.ReadMemStats(&stats)
	return tally{stats.Mallocs - objects, stats.TotalAlloc - bytes}
}

// live is what of build's objects is still there after collections.
func live(build func()) tally {
	before := settled()
	build()
	return settled().minus(before)
}

// settled is what lives after collections.
func settled() tally {
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return tally{stats.HeapObjects, stats.HeapAlloc}
}

const measured = 32

// sizeOf is the size of a new(T).
func sizeOf[T any]() uint64 {
	return allocated(func() {
		for i := 0; i < measured; i++ {
			sink = unsafe.Pointer(new(T))
		}
		sink = nil
	}).Bytes / measured
}

// sizeOfArray is the size of the array behind a make([]T, n).
func sizeOfArray[T any](n int) uint64 {
	return allocated(func() {
		for i := 0; i < measured; i++ {
			sink = unsafe.Pointer(unsafe.SliceData(make([]T, n)))
		}
		sink = nil
	}).Bytes / measured
}

// quiet turns the collector off: from here on it runs only when told to. On one processor:
// the runtime keeps objects of its own, and a pool what it is given, per processor.
func quiet() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(1 << 62)
	// The first collections start the collector's own goroutines.
	settled()
	settled()
}
