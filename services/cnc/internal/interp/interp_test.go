package interp

import (
	"math"
	"strings"
	"testing"

	"cnc/internal/gcode"
)

func run(t *testing.T, text string) ([]Op, *Interp, error) {
	t.Helper()
	p, err := gcode.ParseProgram("test", text)
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Home = Vec{0, 0, 50}
	in := New(cfg)
	var ops []Op
	for _, b := range p.Blocks {
		if err := in.Block(b, func(op Op) { ops = append(ops, op) }); err != nil {
			return ops, in, err
		}
	}
	return ops, in, nil
}

func near(a, b Vec) bool { return a.Sub(b).Len() < 1e-6 }

func TestWhereBlocksEnd(t *testing.T) {
	for _, c := range []struct {
		text string
		want Vec
	}{
		{"G0 X10 Y20 Z5", Vec{10, 20, 5}},
		{"G20 G0 X1 Y2 Z.5", Vec{25.4, 50.8, 12.7}},
		{"G91 G0 X10\nX10\nZ-5", Vec{20, 0, 45}},
		{"G55 G0 X10 Y0 Z0", Vec{410, 0, 0}},
		{"G58 G0 X10 Y0 Z0", Vec{410, 350, 0}},
		{"G55\nG53 G0 X10 Y1 Z2", Vec{10, 1, 2}},
		{"G0 X10 Y10 Z10\nG92 X0 Y0\nG0 X5 Y5", Vec{15, 15, 10}},
		{"G43 H3\nG0 X0 Z10", Vec{0, 0, 17.5}},
		{"G43 H3\nG49\nG0 Z10", Vec{0, 0, 10}},
		{"T2 M6\nG43\nG0 Z10", Vec{0, 0, 15}},
		{"G0 X10 Y10 Z10\nG28", Vec{0, 0, 50}},
		{"G0 X10 Y10 Z10\nG28 Z20", Vec{10, 10, 50}},
		{"G0 X10 Y0 Z0\nG3 X0 Y10 I-10 F100", Vec{0, 10, 0}},
		{"G0 X10 Y0 Z0\nG2 X0 Y10 R10 F100", Vec{0, 10, 0}},
		{"G0 X10 Y0 Z0\nG90.1\nG3 X0 Y10 I0 J0 F100", Vec{0, 10, 0}},
		{"G0 X10 Y0 Z0\nG3 I-10 Z-5 F100", Vec{10, 0, -5}},
		{"G0 X1 Y1 Z5\nG81 Z-5 R1 X10 Y10 F100", Vec{10, 10, 5}},
		{"G0 X0 Y0 Z5\nG91\nG81 X10 Z-5 R-3 L3 F100", Vec{30, 0, 5}},
		{"G0 X5\n/G0 X10", Vec{5, 0, 50}},
		{"G0 X5\nM30\nG0 X10", Vec{5, 0, 50}},
	} {
		_, in, err := run(t, c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
		} else if !near(in.Position(), c.want) {
			t.Errorf("%q: at %v, want %v", c.text, in.Position(), c.want)
		}
	}
}

func TestFeeds(t *testing.T) {
	for _, c := range []struct {
		text string
		want float64 // mm/s of the last move
	}{
		{"G1 X60 F600", 10},
		{"G20 G1 X1 F60", 25.4},
		{"G93 G1 X60 F2", 2},
		{"G0 X10 Y0 Z0\nG93\nG3 X-10 Y0 I-10 F6", math.Pi},
		{"G93 G1 X60 F2\nG94 G1 X10 F60", 1},
	} {
		ops, _, err := run(t, c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
		} else if got := ops[len(ops)-1].Feed; math.Abs(got-c.want) > 1e-6 {
			t.Errorf("%q: feed %v, want %v", c.text, got, c.want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"G1 X10", "no feed"},
		{"X10", "no motion mode"},
		{"G93 G1 X10 F1\nG94 X20", "no feed"},
		{"G93 G1 X10", "needs an F word"},
		{"G0 X5000", "axis X would leave its travel"},
		{"G0 X10 Y0\nG2 X0 Y10 F100", "without a centre"},
		{"G0 X10 Y0\nG2 X0 Y10 I-10 J5 F100", "radius differs"},
		{"G0 X10 Y0\nG2 X50 Y10 R1 F100", "does not reach"},
		{"G0 X10 Y0\nG2 X10 Y0 R1 F100", "differs from its start"},
		{"G18 G0 X10\nG2 X0 Z40 J1 I1 F100", "does not belong"},
		{"G81 X1 R1 F100", "needs a Z word"},
		{"G81 X1 Z-1 F100", "needs an R word"},
		{"G82 X1 Z-1 R1 F100", "needs a P word"},
		{"G83 X1 Z-1 R1 F100", "needs a positive Q"},
		{"G81 X1 Z1 R1 F100", "not below R"},
		{"G18 G81 X1 Z-1 R1 F100", "needs the XY plane"},
		{"G1 X1 F0", "feed of zero"},
		{"G43 H40", "no tool length"},
	} {
		_, _, err := run(t, "G21\n"+c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "line ") {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
}

func TestArcStaysOnItsCircle(t *testing.T) {
	for _, text := range []string{
		"G0 X30 Y20 Z0\nG3 X10 Y20 I-10 F100",
		"G0 X30 Y20 Z0\nG2 I-10 F100",
		"G0 X30 Y20 Z0\nG3 X20 Y30 R10 F100",
		"G0 X30 Y20 Z0\nG3 X20 Y10 R-10 F100",
	} {
		ops, _, err := run(t, text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		prev := Vec{30, 20, 0}
		for _, op := range ops[1:] {
			mid := prev.Add(op.Target)
			for _, p := range []Vec{op.Target, {mid[0] / 2, mid[1] / 2, 0}} {
				if off := math.Abs(math.Hypot(p[0]-20, p[1]-20) - 10); off > 0.0051 {
					t.Fatalf("%q: %v is %.4f mm off the circle", text, p, off)
				}
			}
			prev = op.Target
		}
	}
}

// The long way round with a negative radius, and the direction of both.
func TestArcLength(t *testing.T) {
	length := func(text string) float64 {
		ops, _, err := run(t, text)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for i := 1; i < len(ops); i++ {
			sum += ops[i].Target.Sub(ops[i-1].Target).Len()
		}
		return sum
	}
	for _, c := range []struct {
		arc  string
		want float64 // quarters
	}{
		{"G3 X0 Y10 R10", 1}, {"G3 X0 Y10 R-10", 3}, {"G2 X0 Y10 R10", 1}, {"G2 X0 Y10 R-10", 3},
		{"G3 X0 Y10 I-10", 1}, {"G2 X0 Y10 I-10", 3}, {"G2 I-10", 4}, {"G3 X-10 Y0 R10", 2},
	} {
		got := length("G0 X10 Y0 Z0\nF100\n" + c.arc)
		if want := c.want * 5 * math.Pi; math.Abs(got-want) > 0.01*want {
			t.Errorf("%s: length %.3f, want %.3f", c.arc, got, want)
		}
	}
}

func TestPeckDrilling(t *testing.T) {
	ops, _, err := run(t, "G0 X0 Y0 Z5\nG83 X10 Y0 Z-9 R1 Q4 F100\nX20")
	if err != nil {
		t.Fatal(err)
	}
	var bottoms []float64
	for _, op := range ops {
		if op.Kind == Feed {
			bottoms = append(bottoms, op.Target[2])
		}
	}
	want := []float64{-3, -7, -9, -3, -7, -9}
	if len(bottoms) != len(want) {
		t.Fatalf("bottoms %v, want %v", bottoms, want)
	}
	for i := range want {
		if math.Abs(bottoms[i]-want[i]) > 1e-9 {
			t.Fatalf("bottoms %v, want %v", bottoms, want)
		}
	}
}
