package memtrace

import (
	"os"
	"runtime"
	"sync"
	"time"
)

// keptEvents is how many collections are kept for whoever asks later: at the 30 s of a
// usual watch and ten collections a second, all of them.
const keptEvents = 512

// events are the newest collections, for memtrace to fetch.
var events struct {
	mu      sync.Mutex
	names   []string // of the tracers that run
	started time.Time
	ring    [keptEvents]GCEvent
	count   int // ever kept since started
	cancel  func()
}

// keepEvents keeps collections until the returned function is called.
func keepEvents(name string) (release func()) {
	events.mu.Lock()
	defer events.mu.Unlock()
	name = printable(name[:min(len(name), maxNameLen)])
	events.names = append(events.names, name)
	if len(events.names) == 1 {
		events.started, events.count = time.Now(), 0
		events.cancel = gcWatch.subscribe(func(e GCEvent) {
			events.mu.Lock()
			defer events.mu.Unlock()
			events.ring[events.count%keptEvents] = e
			events.count++
		})
	}
	return func() {
		events.mu.Lock()
		defer events.mu.Unlock()
		for i, n := range events.names {
			if n == name {
				events.names = append(events.names[:i:i], events.names[i+1:]...)
				break
			}
		}
		if len(events.names) == 0 {
			events.cancel()
		}
	}
}

// eventPage is what /debug/memtrace/events answers. Times are Unix nanoseconds, sizes
// bytes, durations nanoseconds; what is not known is left out.
type eventPage struct {
	Schema string      `json:"schema"`
	Now    int64       `json:"now"`   // by the clock that the other times are read from
	Names  []string    `json:"names"` // of the tracers; none: nothing is kept
	PID    int         `json:"pid"`
	Go     string      `json:"go"`
	Since  int64       `json:"since"`            // collections are kept from this time on
	Missed bool        `json:"missed,omitempty"` // some that were asked for are no longer kept
	Stats  Stats       `json:"stats"`
	GCs    []eventJSON `json:"gcs"`
}

type eventJSON struct {
	N      int64  `json:"n"`
	End    int64  `json:"end"`
	Pause  int64  `json:"pause"`
	Live   uint64 `json:"live,omitempty"`
	Before uint64 `json:"before,omitempty"`
	Goal   uint64 `json:"goal,omitempty"`
	CPU    int64  `json:"cpu,omitempty"`
}

// eventsAfter returns what is known of the collections after number n.
func eventsAfter(n int64) eventPage {
	page := eventPage{
		Schema: "memtrace.events/1", Now: time.Now().UnixNano(), PID: os.Getpid(), Go: runtime.Version(),
		Names: []string{}, GCs: []eventJSON{}, Stats: ReadStats(),
	}
	events.mu.Lock()
	defer events.mu.Unlock()
	page.Names = append(page.Names, events.names...)
	if len(events.names) == 0 {
		return page
	}
	page.Since = events.started.UnixNano()
	for i := max(events.count-keptEvents, 0); i < events.count; i++ {
		e := events.ring[i%keptEvents]
		if e.N <= n {
			continue
		}
		page.Missed = page.Missed || n > 0 && len(page.GCs) == 0 && e.N > n+1
		page.GCs = append(page.GCs, eventJSON{
			N: e.N, End: e.End.UnixNano(), Pause: int64(e.Pause), Live: e.HeapLive,
			Before: e.HeapBefore, Goal: e.NextGoal, CPU: int64(e.GCCPU),
		})
	}
	return page
}
