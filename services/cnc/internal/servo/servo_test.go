package servo

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"cnc/internal/interp"
	"cnc/internal/planner"
)

func TestJitterQuantiles(t *testing.T) {
	var j jitter
	for i := uint64(1); i <= 100000; i++ {
		j.record(i * 10)
	}
	s := j.stats()
	for _, c := range []struct {
		name      string
		got, want uint64
	}{{"p50", s.P50, 500000}, {"p99", s.P99, 990000}, {"p99.9", s.P999, 999000}, {"max", s.Max, 1000000}} {
		if off := math.Abs(float64(c.got)/float64(c.want) - 1); off > 0.07 {
			t.Errorf("%s is %d, want %d", c.name, c.got, c.want)
		}
	}
	if s.Count != 100000 || math.Abs(s.Mean-500005) > 1 {
		t.Errorf("count %d, mean %v", s.Count, s.Mean)
	}
	for _, ns := range []uint64{0, 1, 15, 16, 17, 31, 32, 1000, 123456789, math.MaxUint64} {
		if i := bucketOf(ns); i < 61*16 && (bucketTop(i) < ns || i > 0 && bucketTop(i-1) >= ns) {
			t.Errorf("%d ns is in the bucket up to %d", ns, bucketTop(i))
		}
		j.record(ns)
	}
}

func path(to interp.Vec) []planner.Segment {
	var out []planner.Segment
	p := planner.New(planner.DefaultLimits(), 8, interp.Vec{}, func(s planner.Segment) { out = append(out, s) })
	p.Push(interp.Op{Kind: interp.Feed, Feed: 60, Target: to})
	p.Flush()
	return out
}

func TestLoopMovesAndStops(t *testing.T) {
	l := NewLoop(planner.DefaultLimits(), interp.Vec{})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	worst, err := l.Execute(ctx, path(interp.Vec{20, 10, -5}), 50)
	if err != nil || worst > 1 {
		t.Errorf("following error %v, %v", worst, err)
	}
	time.Sleep(200 * time.Millisecond)
	s := l.State()
	if d := s.Position.Sub(interp.Vec{20, 10, -5}).Len(); d > 0.01 {
		t.Errorf("stands at %v", s.Position)
	}
	if s.Ticks == 0 || s.Jitter.Count == 0 || s.Moving {
		t.Errorf("state %+v", s)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := l.Execute(short, path(interp.Vec{500, 0, 0}), 1); !errors.Is(err, ErrStopped) {
		t.Errorf("cut short: %v", err)
	}
	l.ResetJitter()
	if n := l.State().Jitter.Count; n > 100 {
		t.Errorf("%d after the reset", n)
	}
	stop()
	<-done
}

func TestLoopDoesNotAllocate(t *testing.T) {
	l := NewLoop(planner.DefaultLimits(), interp.Vec{})
	l.current.Store(&run{cursor: NewCursor(path(interp.Vec{1000, 0, 0})), steps: 5, done: make(chan struct{})})
	if n := testing.AllocsPerRun(100, func() {
		l.jitter.Load().record(1234)
		l.tick()
	}); n != 0 {
		t.Errorf("%v allocations a tick", n)
	}
}

func TestHistoryIsTrimmed(t *testing.T) {
	h := NewHistory(100, nil)
	for i := 0; i < 10000; i++ {
		h.Record(Sample{Line: int64(i)})
		if h.Len() > 125 {
			t.Fatalf("%d samples", h.Len())
		}
	}
	last := h.Last(3)
	if len(last) != 3 || last[0].Line != 9997 || last[2].Line != 9999 {
		t.Errorf("last %+v", last)
	}
}
