package load

import (
	"context"
	"math"
	"testing"
	"time"

	"cnc/internal/gcode"
	"cnc/internal/interp"
	"cnc/internal/machine"
	"cnc/internal/ncgen"
	"cnc/internal/planner"
	"cnc/internal/scheduler"
)

func TestWriterSpellsNothingTwice(t *testing.T) {
	w := NewWriter(1)
	seen := make(map[string]bool)
	cache := gcode.NewCache(nil)
	for i := 0; i < 60000; i++ {
		line := w.Next()
		if seen[line] {
			t.Fatalf("%q again after %d lines", line, i)
		}
		seen[line] = true
		if _, err := cache.Lookup(line); err != nil {
			t.Fatal(err)
		}
	}
	if cache.Len() > 2000 {
		t.Errorf("%d commands in the cache", cache.Len())
	}
}

func TestPartLinesAreParsed(t *testing.T) {
	names := make(map[string]bool)
	for part := 1000000; part < 1002000; part++ {
		cmd := gcode.NewGCodeCommand()
		cmd.Raw = PartLine(part)
		if err := cmd.Parse(); err != nil || len(cmd.Params) != 6 {
			t.Fatalf("%q: %v, %v", cmd.Raw, cmd.Params, err)
		}
		for name := range cmd.Params {
			names[name] = true
		}
	}
	if want := 4*2000 + 2; len(names) != want {
		t.Errorf("%d names, want %d", len(names), want)
	}
}

func TestShapes(t *testing.T) {
	for _, c := range []struct {
		shape Shape
		at    time.Duration
		want  float64
	}{
		{Steady, time.Hour, 1}, {Sawtooth, time.Hour, 1},
		{Ramp, 0, 0.2}, {Ramp, time.Minute, 0.7}, {Ramp, 2 * time.Minute, 1.2}, {Ramp, time.Hour, 1.2},
	} {
		if got := c.shape.factor(c.at, 2*time.Minute); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s after %v: %v, want %v", c.shape, c.at, got, c.want)
		}
	}
}

func engine(cfg Config) *Engine {
	programs := make(map[string]string)
	for _, p := range ncgen.All() {
		programs[p.Name] = p.Text
	}
	return NewEngine(cfg, programs, interp.DefaultConfig(), planner.DefaultLimits(),
		scheduler.New(machine.New(), time.Second, nil))
}

// All programs on two fixtures, by the way that the load takes.
func TestAllPieces(t *testing.T) {
	e := engine(Config{CacheSize: 50, Seed: 1})
	for p := range e.programs {
		for f := 0; f < len(e.fixtures); f += 3 {
			k := &task{program: &e.programs[p], fixture: f, state: interp.New(e.fixtures[f])}
			for ; k.piece*piece < len(k.program.lines); k.piece++ {
				path, err := e.plan(k)
				if err != nil {
					t.Fatalf("%s on fixture %d: %v", k.program.name, f, err)
				}
				next := path.Next
				k.state = &next
			}
			if !k.state.Ended() {
				t.Errorf("%s on fixture %d does not end", k.program.name, f)
			}
		}
	}
}

func TestCacheFillsAndEvicts(t *testing.T) {
	e := engine(Config{CacheSize: 20, Seed: 1})
	now := time.Now()
	for i := 0; i < 100; i++ {
		if n := e.previewPiece(context.Background(), now); n <= 0 {
			t.Fatal(n)
		}
		if s := e.Stats(); s.Cache.Len > 20 {
			t.Fatalf("%+v", s)
		}
	}
	if s := e.Stats(); s.Cache.Evictions == 0 || s.Cache.Len != 20 || s.Blocks < 8000 || s.Retained != 100 {
		t.Errorf("%+v", s)
	}
	e.expire(now.Add(retention))
	if s := e.Stats(); s.Retained != 0 {
		t.Errorf("%d previews are left", s.Retained)
	}
}

// A cached piece must give the same path as a planned one.
func TestCacheChangesNothing(t *testing.T) {
	with, without := engine(Config{CacheSize: 10000, Seed: 5}), engine(Config{Seed: 5})
	with.programs, without.programs = with.programs[:1], without.programs[:1]
	now := time.Now()
	for i := 0; i < 200; i++ {
		with.previewPiece(context.Background(), now)
		without.previewPiece(context.Background(), now)
		a, b := with.recent[0], without.recent[0]
		if a.program != b.program || a.line != b.line || a.seconds != b.seconds || a.worst != b.worst {
			t.Fatalf("piece %d: %s line %d differs", i, a.program, a.line)
		}
		with.recent, without.recent = nil, nil
	}
	if s := with.Stats(); s.Cache.Hits == 0 {
		t.Error("no hits")
	}
}

// Ten seconds of each shape, in steps of 10 ms.
func TestLoadOverTime(t *testing.T) {
	for _, c := range []struct {
		shape  Shape
		blocks float64
	}{{Steady, 4000}, {Ramp, 2800}, {Sawtooth, 4000}} {
		e := engine(Config{Rate: 400, Shape: c.shape, Period: 10 * time.Second, Seed: 1})
		e.cfg.Period = 10 * time.Second
		if c.shape == Sawtooth {
			e.cfg.Period = 3 * time.Second
		}
		start := time.Now()
		e.begin(start)
		drops, last, retained := 0, 0, 0
		for at := tick; at <= 10*time.Second; at += tick {
			e.step(context.Background(), start.Add(at))
			s := e.Stats()
			if s.Collected < last {
				drops++
			}
			last, retained = s.Collected, s.Retained
		}
		s := e.Stats()
		if math.Abs(float64(s.Blocks)/c.blocks-1) > 0.07 {
			t.Errorf("%s: %d blocks, want about %.0f", c.shape, s.Blocks, c.blocks)
		}
		// What is retained follows the load of the last five seconds.
		want := 4 * 5 * (s.Factor + c.shape.factor(5*time.Second, e.cfg.Period)) / 2
		if math.Abs(float64(retained)-want) > 3 {
			t.Errorf("%s: %d previews are retained at a load of %.1f, want about %.0f", c.shape, retained, s.Factor, want)
		}
		if want := map[Shape]int{Sawtooth: 3}[c.shape]; drops != want {
			t.Errorf("%s: %d drops, want %d", c.shape, drops, want)
		}
	}
}

func TestPace(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 600*time.Millisecond)
	defer cancel()
	start, sum := time.Now(), int64(0)
	pace(ctx, 1<<20, func() int64 { sum += 1000; return 1000 })
	if rate := float64(sum) / time.Since(start).Seconds(); rate < 0.7*(1<<20) || rate > 1.1*(1<<20) {
		t.Errorf("%.0f bytes a second", rate)
	}
}
