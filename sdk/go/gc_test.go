package memtrace

import (
	"encoding/json"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"
)

var sink []byte

// Each of a thousand collections is told of once and in order, forced ones that follow
// each other at once as well as those that allocation brings about.
func TestEveryCollectionIsToldOnceInOrder(t *testing.T) {
	for name, collect := range map[string]func(done func() bool){
		"forced": func(done func() bool) {
			for !done() {
				runtime.GC()
			}
		},
		"by allocation": func(done func() bool) {
			defer debug.SetGCPercent(debug.SetGCPercent(10))
			for !done() {
				sink = make([]byte, 64<<10)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after debug.GCStats
			var mu sync.Mutex
			var got []GCEvent
			debug.ReadGCStats(&before)
			cancel := OnGC(func(e GCEvent) {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, e)
			})
			collect(func() bool {
				debug.ReadGCStats(&after)
				return after.NumGC >= before.NumGC+1000
			})
			last := func() int64 {
				mu.Lock()
				defer mu.Unlock()
				if len(got) == 0 {
					return 0
				}
				return got[len(got)-1].N
			}
			for deadline := time.Now().Add(10 * time.Second); last() < before.NumGC+1000 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			cancel()
			mu.Lock()
			defer mu.Unlock()
			if len(got) < 1000 {
				t.Fatalf("%d events", len(got))
			}
			exact := 0
			for i, e := range got {
				// Between the reading above and the subscription another one may have ended.
				if e.N != got[0].N+int64(i) {
					t.Fatalf("collection %d follows %d", e.N, got[i-1].N)
				}
				if i > 0 && e.End.Before(got[i-1].End) || e.Pause <= 0 {
					t.Errorf("collection %d: end %s, pause %s", e.N, e.End, e.Pause)
				}
				if e.HeapLive > 0 {
					exact++
				}
				if e.HeapBefore > 0 && e.HeapBefore != e.HeapLive+e.Reclaimed {
					t.Errorf("collection %d: %+v", e.N, e)
				}
			}
			t.Logf("%d of %d with the heap they found alive", exact, len(got))
			if exact == 0 {
				t.Error("no event tells the heap")
			}
		})
	}
}

// A subscriber that does not come back holds up nobody.
func TestSlowSubscribers(t *testing.T) {
	block := make(chan struct{})
	defer close(block)
	defer OnGC(func(GCEvent) { <-block })()
	events := make(chan GCEvent, 64)
	defer OnGC(func(e GCEvent) { events <- e })()
	for i := 0; i < 10; i++ {
		runtime.GC()
	}
	for i := 0; i < 10; i++ {
		select {
		case <-events:
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of 10 events", i)
		}
	}
}

// What a collection found alive and reclaimed is what the program held and dropped.
func TestCollectionsTellWhatTheyReclaimed(t *testing.T) {
	events := make(chan GCEvent, 64)
	runtime.GC()
	cancel := OnGC(func(e GCEvent) { events <- e })
	defer cancel()
	next := func() GCEvent {
		for {
			select {
			case e := <-events:
				if e.HeapLive > 0 {
					return e
				}
			case <-time.After(10 * time.Second):
				t.Fatal("no event")
			}
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	const size = 32 << 20
	runtime.GC()
	empty := next()
	held := make([]byte, size)
	runtime.GC()
	full := next()
	runtime.KeepAlive(held)
	held = nil
	runtime.GC()
	after := next()
	near := func(what string, got, want uint64) {
		if got < want-want/16 || got > want+want/16 {
			t.Errorf("%s: %d bytes, not %d", what, got, want)
		}
	}
	near("held", full.HeapLive-empty.HeapLive, size)
	near("reclaimed", after.Reclaimed, size)
	near("before", after.HeapBefore, full.HeapLive)
}

func TestEventsAreServed(t *testing.T) {
	get := func(query string) (page eventPage) {
		w := httptest.NewRecorder()
		Handler().ServeHTTP(w, httptest.NewRequest("GET", "/debug/memtrace/events"+query, nil))
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		return page
	}
	if page := get(""); len(page.Names) != 0 || len(page.GCs) != 0 {
		t.Errorf("events without a tracer: %+v", page)
	}
	tracer := Start("served", WithWriter(nopWriter{}))
	defer tracer.Stop()
	runtime.GC()
	var page eventPage
	for deadline := time.Now().Add(10 * time.Second); len(page.GCs) == 0 && time.Now().Before(deadline); {
		page = get("?since=0")
	}
	if len(page.GCs) == 0 || page.Schema != "memtrace.events/1" || page.Names[0] != "served" || page.Stats.HeapLive == 0 {
		t.Fatalf("%+v", page)
	}
	newest := page.GCs[len(page.GCs)-1].N
	for _, e := range get("?since=" + jsonNumber(newest)).GCs {
		if e.N <= newest {
			t.Errorf("collection %d again", e.N)
		}
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, httptest.NewRequest("GET", "/debug/memtrace/events?since=-1", nil))
	if w.Code != 400 {
		t.Errorf("status %d for a bad number", w.Code)
	}
}

func jsonNumber(n int64) string {
	b, _ := json.Marshal(n)
	return string(b)
}

type nopWriter struct{}

func (nopWriter) Write(b []byte) (int, error) { return len(b), nil }

func BenchmarkReadStats(b *testing.B) {
	b.ReportAllocs()
	for i := 0; i < b.N; i++ {
		ReadStats()
	}
}

func BenchmarkReadMemStats(b *testing.B) { // for comparison: it stops the world
	var m runtime.MemStats
	for i := 0; i < b.N; i++ {
		runtime.ReadMemStats(&m)
	}
}
