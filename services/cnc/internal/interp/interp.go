// Package interp gives blocks their meaning: it keeps the modal state of the
// controller and turns each block into straight moves in machine coordinates and
// commands for the machine. Arcs leave as chords, drilling cycles as moves,
// inches as millimetres; what follows knows none of them.
package interp

import (
	"math"

	"cnc/internal/gcode"
)

// Vec is a position in mm: X, Y, Z.
type Vec [3]float64

// Sub returns v-w.
func (v Vec) Sub(w Vec) Vec { return Vec{v[0] - w[0], v[1] - w[1], v[2] - w[2]} }

// Add returns v+w.
func (v Vec) Add(w Vec) Vec { return Vec{v[0] + w[0], v[1] + w[1], v[2] + w[2]} }

// Len returns the length of v.
func (v Vec) Len() float64 { return math.Sqrt(v[0]*v[0] + v[1]*v[1] + v[2]*v[2]) }

// Kind says what an Op does.
type Kind uint8

// Kinds of Op.
const (
	Rapid   Kind = iota // move as fast as the axes allow
	Feed                // move at Op.Feed
	Dwell               // stand still for Op.Value seconds
	Command             // tell the machine Op.Code with Op.Value
)

// Op is one thing to do.
type Op struct {
	Kind   Kind
	Line   int
	Target Vec     // machine coordinates, mm
	Feed   float64 // mm/s along the path
	Code   int     // M code
	Value  float64
}

// Config describes the machine.
type Config struct {
	Offsets    [6]Vec      // work offsets G54 to G59
	Home       Vec         // where G28 goes
	Min, Max   Vec         // travel of the axes
	ToolLength [32]float64 // by tool number; G43 H
	Tolerance  float64     // largest distance between an arc and its chords, mm
}

// DefaultConfig is a small vertical mill with six fixtures on its table.
func DefaultConfig() Config {
	c := Config{Min: Vec{-400, -300, -400}, Max: Vec{1600, 1100, 300}, Tolerance: 0.005}
	for i := range c.Offsets {
		c.Offsets[i] = Vec{float64(i%3) * 400, float64(i/3) * 350, 0}
	}
	for i := range c.ToolLength {
		c.ToolLength[i] = float64(i%8) * 2.5
	}
	c.Home = Vec{0, 0, 150}
	return c
}

// Interp is the modal state between blocks.
type Interp struct {
	cfg *Config // shared and never changed: the state is copied often

	pos     Vec // machine coordinates
	shift   Vec // G92
	work    int // 0 for G54
	length  float64
	tool    int
	spindle float64

	motion      int // tenths; 800 when none
	plane       int // 170 180 190
	inches      bool
	incremental bool
	arcAbsolute bool
	inverseTime bool
	feed        float64 // mm/s in G94
	ended       bool

	sticky  cycle
	skipped bool // block delete is on
	emit    func(Op)
	line    int
}

// cycle keeps the words that a drilling cycle remembers.
type cycle struct {
	z, r, q, p     float64 // program units are already mm
	hasZ, hasR     bool
	hasQ, hasDwell bool
}

// New returns the state after power-on, at home.
func New(cfg Config) *Interp {
	return &Interp{cfg: &cfg, pos: cfg.Home, motion: 800, plane: 170, skipped: true}
}

// SetBlockDelete switches the operator's block-delete switch; it starts on.
func (in *Interp) SetBlockDelete(on bool) { in.skipped = on }

// SetWork selects a work offset as G54 to G59 do, 0 for G54.
func (in *Interp) SetWork(i int) { in.work = i }

// Position returns the position in machine coordinates after the last block.
func (in *Interp) Position() Vec { return in.pos }

// Ended reports whether the program has come to its end (M2, M30).
func (in *Interp) Ended() bool { return in.ended }

// Block interprets one block; emit gets what is to be done, in order.
func (in *Interp) Block(b *gcode.Block, emit func(Op)) error {
	if in.ended || b.Empty() || b.Delete && in.skipped {
		return nil
	}
	in.emit, in.line = emit, b.Line
	// The order is the one of RS-274/NGC table 8: modes before motion, stop last.
	if err := in.modes(b); err != nil {
		return err
	}
	if err := in.feedWord(b); err != nil {
		return err
	}
	in.before(b)
	if b.HasG(40) {
		p, _ := b.Word('P')
		emit(Op{Kind: Dwell, Line: b.Line, Target: in.pos, Value: p})
	}
	if err := in.move(b); err != nil {
		return err
	}
	in.after(b)
	return nil
}

func (in *Interp) modes(b *gcode.Block) error {
	for _, g := range b.G {
		switch g {
		case 200:
			in.inches = true
		case 210:
			in.inches = false
		case 170, 180, 190:
			in.plane = g
		case 900:
			in.incremental = false
		case 910:
			in.incremental = true
		case 901:
			in.arcAbsolute = true
		case 911:
			in.arcAbsolute = false
		case 930:
			in.inverseTime = true
		case 940:
			if in.inverseTime {
				in.feed = 0 // a feed in 1/min says nothing in mm/min
			}
			in.inverseTime = false
		case 540, 550, 560, 570, 580, 590:
			in.work = (g - 540) / 10
		case 430:
			h := float64(in.tool)
			if v, ok := b.Word('H'); ok {
				h = v
			}
			if int(h) >= len(in.cfg.ToolLength) {
				return gcode.Errorf(b.Line, "no tool length H%v", h)
			}
			in.length = in.cfg.ToolLength[int(h)]
		case 490:
			in.length = 0
		}
	}
	if v, ok := b.Word('T'); ok {
		if int(v) >= len(in.cfg.ToolLength) {
			return gcode.Errorf(b.Line, "no tool T%v", v)
		}
		in.tool = int(v)
	}
	if g, ok := b.InGroup(gcode.GroupMotion); ok {
		if g >= 810 && g != in.motion {
			in.sticky = cycle{}
		}
		in.motion = g
	}
	return nil
}

func (in *Interp) feedWord(b *gcode.Block) error {
	v, ok := b.Word('F')
	if !ok || in.inverseTime {
		return nil
	}
	if v == 0 {
		return gcode.Errorf(b.Line, "feed of zero")
	}
	in.feed = in.mm(v) / 60
	return nil
}

// before sends what must have happened when the axes start to move.
func (in *Interp) before(b *gcode.Block) {
	if v, ok := b.Word('S'); ok {
		in.spindle = v
	}
	for _, m := range b.M {
		switch m {
		case 6:
			in.command(m, float64(in.tool))
		case 3, 4:
			in.command(m, in.spindle)
		case 5, 7, 8, 9:
			in.command(m, 0)
		}
	}
}

// after stops.
func (in *Interp) after(b *gcode.Block) {
	for _, m := range b.M {
		switch m {
		case 2, 30:
			in.ended = true
			in.command(m, 0)
		case 0, 1:
			in.command(m, 0)
		}
	}
}

func (in *Interp) command(code int, value float64) {
	in.emit(Op{Kind: Command, Line: in.line, Target: in.pos, Code: code, Value: value})
}

func (in *Interp) mm(v float64) float64 {
	if in.inches {
		return v * 25.4
	}
	return v
}

// origin is the machine position of the program's zero.
func (in *Interp) origin() Vec {
	o := in.cfg.Offsets[in.work].Add(in.shift)
	o[2] += in.length
	return o
}

// target returns the end point that the axis words ask for.
func (in *Interp) target(b *gcode.Block, machine bool) (Vec, bool) {
	t, any, o := in.pos, false, in.origin()
	for i, letter := range []byte("XYZ") {
		v, ok := b.Word(letter)
		if !ok {
			continue
		}
		any = true
		switch {
		case machine:
			t[i] = in.mm(v)
		case in.incremental:
			t[i] += in.mm(v)
		default:
			t[i] = in.mm(v) + o[i]
		}
	}
	return t, any
}

func (in *Interp) move(b *gcode.Block) error {
	switch {
	case b.HasG(280):
		via, any := in.target(b, false)
		if any {
			if err := in.to(Rapid, via, 0); err != nil {
				return err
			}
		}
		home := in.cfg.Home
		if any { // only the axes that were named go home
			for i, letter := range []byte("XYZ") {
				if _, ok := b.Word(letter); !ok {
					home[i] = in.pos[i]
				}
			}
		}
		return in.to(Rapid, home, 0)
	case b.HasG(920):
		o := in.origin()
		for i, letter := range []byte("XYZ") {
			if v, ok := b.Word(letter); ok {
				in.shift[i] += in.pos[i] - o[i] - in.mm(v)
			}
		}
		return nil
	}
	t, any := in.target(b, b.HasG(530))
	if !any && !(in.motion == 20 || in.motion == 30) {
		return nil
	}
	if !any && !b.Has("IJKR") {
		return nil
	}
	switch in.motion {
	case 0:
		return in.to(Rapid, t, 0)
	case 10:
		if b.HasG(530) && in.inverseTime {
			return gcode.Errorf(b.Line, "G53 with G93")
		}
		feed, err := in.feedFor(b, t.Sub(in.pos).Len())
		if err != nil {
			return err
		}
		return in.to(Feed, t, feed)
	case 20, 30:
		return in.arc(b, t)
	case 810, 820, 830:
		return in.drill(b)
	}
	return gcode.Errorf(b.Line, "axis words but no motion mode is active")
}

// feedFor returns the speed of a feed move of the given length.
func (in *Interp) feedFor(b *gcode.Block, length float64) (float64, error) {
	if in.inverseTime {
		f, ok := b.Word('F')
		if !ok || f == 0 {
			return 0, gcode.Errorf(b.Line, "G93 needs an F word in each feed block")
		}
		return length * f / 60, nil
	}
	if in.feed == 0 {
		return 0, gcode.Errorf(b.Line, "no feed (F) was given")
	}
	return in.feed, nil
}

func (in *Interp) to(kind Kind, t Vec, feed float64) error {
	for i := range t {
		if !(t[i] >= in.cfg.Min[i] && t[i] <= in.cfg.Max[i]) {
			return gcode.Errorf(in.line, "axis %c would leave its travel: %.3f mm", "XYZ"[i], t[i])
		}
	}
	if t == in.pos {
		return nil
	}
	in.pos = t
	in.emit(Op{Kind: kind, Line: in.line, Target: t, Feed: feed})
	return nil
}

// Forget lets go of the receiver of Ops, so that a copy of the state keeps nothing
// else alive.
func (in *Interp) Forget() { in.emit = nil }
