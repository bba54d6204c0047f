package memtrace

import (
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// GCEvent is one garbage collection.
type GCEvent struct {
	// N is its number since the start of the process, from 1.
	N int64
	// End is when its last pause ended.
	End time.Time
	// Pause is the sum of its pauses.
	Pause time.Duration
	// HeapLive is what it found alive, bytes. 0 when another collection ended before
	// this one could be looked at; so are the fields that follow.
	HeapLive uint64
	// HeapBefore is the size of the heap when it ended, before anything was
	// reclaimed, bytes. It is HeapLive of the collection before and what was allocated
	// since: exact to what was allocated in the microseconds until it was read. 0 also
	// when nothing is known of the collection before.
	HeapBefore uint64
	// Reclaimed is HeapBefore less HeapLive.
	Reclaimed uint64
	// NextGoal is the heap size at which the next collection should end, bytes.
	NextGoal uint64
	// GCCPU is the processor time that collections took since the last event with a
	// HeapLive, as the runtime estimates it.
	GCCPU time.Duration
}

// OnGC calls f for every garbage collection that ends from now on, once and in order,
// on a goroutine of its own, until the returned function is called. f runs soon after
// the collection, not within it. A collection is missed only when f is 512 events behind,
// or when more than 256 ended while this process did not get to look; the gap shows in N.
func OnGC(f func(GCEvent)) (cancel func()) {
	queue, done := make(chan GCEvent, keptEvents), make(chan struct{})
	go func() {
		for {
			select {
			case e := <-queue:
				f(e)
			case <-done:
				return
			}
		}
	}()
	unsubscribe := gcWatch.subscribe(func(e GCEvent) {
		select {
		case queue <- e:
		default: // f is too slow, and must not hold up the others
		}
	})
	var once sync.Once
	return func() {
		once.Do(func() {
			unsubscribe()
			close(done)
		})
	}
}

var gcWatch gcWatcher

// gcWatcher reads what the runtime knows of its collections, woken by each of them.
type gcWatcher struct {
	mu          sync.Mutex
	subscribers map[*subscriber]struct{}
	stop        func()
}

// subscriber is told of each event, and must return at once.
type subscriber struct{ tell func(GCEvent) }

func (w *gcWatcher) subscribe(tell func(GCEvent)) (cancel func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subscribers == nil {
		w.subscribers = make(map[*subscriber]struct{})
	}
	s := &subscriber{tell}
	w.subscribers[s] = struct{}{}
	if w.stop == nil {
		w.stop = w.begin()
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.subscribers, s)
		if len(w.subscribers) == 0 && w.stop != nil {
			w.stop()
			w.stop = nil
		}
	}
}

// begin reads the state now, so that no later collection is missed, and follows.
func (w *gcWatcher) begin() (stop func()) {
	reader := newGCReader()
	wake, done := make(chan struct{}, 1), make(chan struct{})
	unhook := onEachCollection(func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	go func() {
		// When finalizers hang, the clock must do.
		clock := time.NewTicker(time.Second)
		defer clock.Stop()
		for {
			select {
			case <-wake:
			case <-clock.C:
			case <-done:
				return
			}
			reader.read(w.publish)
		}
	}()
	return func() {
		unhook()
		close(done)
	}
}

func (w *gcWatcher) publish(e GCEvent) {
	w.mu.Lock()
	all := make([]*subscriber, 0, len(w.subscribers))
	for s := range w.subscribers {
		all = append(all, s)
	}
	w.mu.Unlock()
	for _, s := range all {
		s.tell(e)
	}
}

// gcReader turns readings of the runtime into events.
type gcReader struct {
	stats   debug.GCStats
	samples []metrics.Sample
	seen    int64
	last    gcReading
}

// gcReading is what the metrics say after collection n.
type gcReading struct {
	n                     int64
	live, goal, allocated uint64
	cpu                   float64
}

func newGCReader() *gcReader {
	r := &gcReader{samples: []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/gc/heap/goal:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/cpu/classes/gc/total:cpu-seconds"},
	}}
	debug.ReadGCStats(&r.stats)
	r.seen = r.stats.NumGC
	if now := r.metrics(); now.n == r.seen {
		r.last = now
	}
	return r
}

func (r *gcReader) metrics() gcReading {
	metrics.Read(r.samples)
	u := func(i int) uint64 {
		if r.samples[i].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return r.samples[i].Value.Uint64()
	}
	reading := gcReading{n: int64(u(0)), live: u(1), goal: u(2), allocated: u(3)}
	if r.samples[4].Value.Kind() == metrics.KindFloat64 {
		reading.cpu = r.samples[4].Value.Float64()
	}
	return reading
}

// read calls f for each collection since the last read. None costs an allocation.
func (r *gcReader) read(f func(GCEvent)) {
	// Readings of both kinds must be of the same collection; else the newest events
	// come without what only the metrics know.
	var now gcReading
	for try := 0; try < 4; try++ {
		now = r.metrics()
		debug.ReadGCStats(&r.stats)
		if now.n == r.stats.NumGC {
			break
		}
	}
	for n := r.seen + 1; n <= r.stats.NumGC; n++ {
		back := int(r.stats.NumGC - n) // the newest comes first
		if back >= len(r.stats.Pause) || back >= len(r.stats.PauseEnd) {
			continue
		}
		e := GCEvent{N: n, End: r.stats.PauseEnd[back], Pause: r.stats.Pause[back]}
		if n == now.n {
			e.HeapLive, e.NextGoal = now.live, now.goal
			e.GCCPU = time.Duration((now.cpu - r.last.cpu) * 1e9)
			if r.last.n == n-1 && r.last.n > 0 {
				e.HeapBefore = max(r.last.live+now.allocated-r.last.allocated, now.live)
				e.Reclaimed = e.HeapBefore - e.HeapLive
			}
			r.last = now
		}
		f(e)
	}
	r.seen = r.stats.NumGC
}
