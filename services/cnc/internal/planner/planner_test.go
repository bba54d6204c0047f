package planner

import (
	"math"
	"math/rand"
	"testing"

	"cnc/internal/gcode"
	"cnc/internal/interp"
	"cnc/internal/ncgen"
)

// check looks at all that must hold for planned segments.
func check(t *testing.T, name string, limits Limits, segments []Segment, ops []interp.Op, start interp.Vec) {
	t.Helper()
	const slack = 1 + 1e-6
	feeds := make(map[interp.Vec]float64)
	for _, op := range ops {
		if op.Kind == interp.Feed {
			feeds[op.Target] = math.Max(feeds[op.Target], op.Feed)
		}
	}
	pos, speed := start, 0.0
	for i := range segments {
		s := &segments[i]
		if s.Start != pos {
			t.Fatalf("%s: segment %d starts at %v, not at %v", name, i, s.Start, pos)
		}
		pos = s.End
		if s.Length == 0 {
			if speed > 1e-9 {
				t.Fatalf("%s: segment %d: stands still after a speed of %v", name, i, speed)
			}
			continue
		}
		if math.Abs(s.V0-speed) > 1e-6 {
			t.Fatalf("%s: segment %d: enters at %v after %v", name, i, s.V0, speed)
		}
		speed = s.V1
		if s.Kind == interp.Feed && s.Vmax > feeds[s.End]*slack {
			t.Fatalf("%s: segment %d: %v mm/s, feed is %v", name, i, s.Vmax, feeds[s.End])
		}
		for k := range s.Dir {
			u := math.Abs(s.Dir[k])
			if s.Vmax*u > limits.MaxSpeed[k]*slack || s.Accel*u > limits.MaxAccel[k]*slack {
				t.Fatalf("%s: segment %d: axis %d at %v mm/s, %v mm/s2", name, i, k, s.Vmax*u, s.Accel*u)
			}
		}
		if s.T0 < 0 || s.T1 < 0 || s.T2 < 0 || math.IsNaN(s.Duration()) || math.IsInf(s.Duration(), 0) {
			t.Fatalf("%s: segment %d: times %v %v %v", name, i, s.T0, s.T1, s.T2)
		}
		area := (s.V0+s.Vmax)/2*s.T0 + s.Vmax*s.T1 + (s.V1+s.Vmax)/2*s.T2
		if math.Abs(area-s.Length) > 1e-6*math.Max(1, s.Length) {
			t.Fatalf("%s: segment %d: goes %v of %v mm", name, i, area, s.Length)
		}
	}
	if speed > 1e-9 {
		t.Fatalf("%s: ends at %v mm/s", name, speed)
	}
	last := start
	for _, op := range ops {
		last = op.Target
	}
	if pos.Sub(last).Len() > 1e-6 {
		t.Fatalf("%s: ends at %v, not at %v", name, pos, last)
	}
}

func plan(limits Limits, window int, start interp.Vec, ops []interp.Op) []Segment {
	var out []Segment
	p := New(limits, window, start, func(s Segment) { out = append(out, s) })
	for _, op := range ops {
		p.Push(op)
	}
	p.Flush()
	return out
}

func TestRandomPaths(t *testing.T) {
	random := rand.New(rand.NewSource(3))
	limits := DefaultLimits()
	for round := 0; round < 300; round++ {
		var ops []interp.Op
		pos := interp.Vec{}
		scale := math.Pow(10, 3*random.Float64()-2)
		for i := 0; i < 200; i++ {
			op := interp.Op{Kind: interp.Kind(random.Intn(2)), Feed: math.Pow(10, 4*random.Float64()-1)}
			if random.Intn(30) == 0 {
				op = interp.Op{Kind: interp.Dwell, Value: 0.1, Target: pos}
			} else {
				for k := range pos {
					pos[k] += scale * random.NormFloat64()
				}
				if random.Intn(10) == 0 && len(ops) > 1 {
					pos = ops[len(ops)-2].Target // back where it came from
				}
				op.Target = pos
			}
			ops = append(ops, op)
		}
		check(t, "random", limits, plan(limits, 1+random.Intn(80), interp.Vec{}, ops), ops, interp.Vec{})
	}
}

// A longer window may only make it faster.
func TestLookAheadHelps(t *testing.T) {
	var ops []interp.Op
	for i := 1; i <= 500; i++ {
		a := float64(i) / 50
		ops = append(ops, interp.Op{Kind: interp.Feed, Feed: 100, Target: interp.Vec{20 * math.Sin(a), 20 - 20*math.Cos(a), 0}})
	}
	seconds := func(window int) float64 {
		sum := 0.0
		for _, s := range plan(DefaultLimits(), window, interp.Vec{}, ops) {
			sum += s.Duration()
		}
		return sum
	}
	short, long := seconds(1), seconds(64)
	if long > 0.7*short {
		t.Errorf("%.3f s with a window of 64, %.3f s with 1", long, short)
	}
}

// Speed and acceleration along the path, seen at the steps of the control loop.
func TestProfileIsSmooth(t *testing.T) {
	limits := DefaultLimits()
	ops := []interp.Op{
		{Kind: interp.Feed, Feed: 50, Target: interp.Vec{30, 0, 0}},
		{Kind: interp.Feed, Feed: 80, Target: interp.Vec{60, 5, 0}},
		{Kind: interp.Rapid, Target: interp.Vec{60, 80, 10}},
	}
	for _, s := range plan(limits, 8, interp.Vec{}, ops) {
		s := s
		last, lastV := s.At(0)
		for x := 0.001; x < s.Duration(); x += 0.001 {
			p, v := s.At(x)
			if math.Abs(v-lastV) > 0.001*s.Accel*1.001 {
				t.Fatalf("speed jumps from %v to %v", lastV, v)
			}
			if d := p.Sub(last).Len(); math.Abs(d-(v+lastV)/2*0.001) > 0.001*s.Accel*0.001 {
				t.Fatalf("moves %v at %v mm/s", d, v)
			}
			last, lastV = p, v
		}
		if p, _ := s.At(s.Duration() + 1); p != s.End {
			t.Fatalf("ends at %v", p)
		}
	}
}

func TestGeneratedPrograms(t *testing.T) {
	limits, cfg := DefaultLimits(), interp.DefaultConfig()
	for _, program := range ncgen.All() {
		parsed, err := gcode.ParseProgram(program.Name, program.Text)
		if err != nil {
			t.Fatalf("%s: %v", program.Name, err)
		}
		in := interp.New(cfg)
		var ops []interp.Op
		for _, b := range parsed.Blocks {
			if err := in.Block(b, func(op interp.Op) { ops = append(ops, op) }); err != nil {
				t.Fatalf("%s: %v", program.Name, err)
			}
		}
		if !in.Ended() {
			t.Errorf("%s has no end", program.Name)
		}
		segments := plan(limits, 64, cfg.Home, ops)
		seconds := 0.0
		for i := range segments {
			seconds += segments[i].Duration()
		}
		t.Logf("%-14s %5d blocks %6d segments %7.0f s", program.Name, len(parsed.Blocks), len(segments), seconds)
		// A feed may differ between two moves to one point; the map in check keeps
		// the higher.
		check(t, program.Name, limits, segments, ops, cfg.Home)
	}
}
