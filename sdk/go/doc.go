// Package memtrace tells a Go service's memory apart by the work it belongs to.
//
// It gives what the runtime's profiles cannot: business tags on heap samples ([Do],
// [Tag]), a report of the stacks that newly allocated ([Start]), every garbage
// collection with what it found alive ([OnGC]), gauges that do not stop the world
// ([ReadStats]), and a pprof endpoint that may be exposed in production ([Guard]).
// `memtrace watch` finds all of it by itself when it is served beside pprof ([Handler]).
//
// # What it costs
//
// A Tag/Untag pair and a Do take some tens of nanoseconds and allocate nothing once the
// tag is known and the goroutine has no other labels ([runtime/pprof.Do]), which they
// would have to be merged with; a report takes a millisecond or two, a collection some microseconds
// (BenchmarkTag, BenchmarkDo, BenchmarkIntervalReport). Nothing stops the world unless
// [WithMemStats] asks for it.
//
// # What tags cost the runtime
//
// The runtime keeps one record for each stack that was ever sampled, and a tag makes
// stacks of its own: some 400 bytes for each pair of tag and sampled stack, never given
// back. That is why at most 4,095 tags have frames at a time, why the numbers of tags that
// are over are used again, and why no tag gets new ones while all records of the profiler
// take more than [TagBudget] bytes. [Stats].ProfileBytes tells what they take.
package memtrace
