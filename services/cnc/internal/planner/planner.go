// Package planner gives moves their speed: it looks ahead over a window of moves
// so that the machine can always stop in time, slows down at corners, and returns
// segments with trapezoidal speed that an interpolator only has to evaluate.
package planner

import (
	"math"

	"cnc/internal/interp"
)

// Limits of the machine, by axis.
type Limits struct {
	MaxSpeed  interp.Vec // mm/s
	MaxAccel  interp.Vec // mm/s^2
	Deviation float64    // how far from a corner the rounded path may be, mm
}

// DefaultLimits fit the mill of interp.DefaultConfig.
func DefaultLimits() Limits {
	return Limits{
		MaxSpeed:  interp.Vec{400, 400, 250},
		MaxAccel:  interp.Vec{2500, 2500, 1500},
		Deviation: 0.02,
	}
}

// Segment is a straight piece of path with its speed profile: accelerate from
// V0 to Vmax, cruise, slow down to V1. A dwell or command has no length; its
// speeds are zero.
type Segment struct {
	Kind       interp.Kind
	Line       int
	Code       int
	Value      float64
	Start, End interp.Vec
	Dir        interp.Vec // unit vector
	Length     float64    // mm
	Accel      float64    // mm/s^2
	V0, Vmax   float64    // mm/s
	V1         float64
	T0, T1, T2 float64 // seconds of acceleration, cruise, deceleration
	limit      float64 // highest speed that feed and axes allow
	entry      float64 // highest entry speed that the corner allows
}

// Duration returns the seconds that the segment takes.
func (s *Segment) Duration() float64 {
	if s.Kind == interp.Dwell {
		return s.Value
	}
	return s.T0 + s.T1 + s.T2
}

// At returns the position and speed along the path at t seconds.
func (s *Segment) At(t float64) (interp.Vec, float64) {
	if s.Length == 0 {
		return s.End, 0
	}
	var d, v float64
	switch {
	case t <= 0:
		v = s.V0
	case t < s.T0:
		v = s.V0 + s.Accel*t
		d = (s.V0 + v) / 2 * t
	case t < s.T0+s.T1:
		v = s.Vmax
		d = (s.V0+s.Vmax)/2*s.T0 + s.Vmax*(t-s.T0)
	case t < s.T0+s.T1+s.T2:
		left := s.T0 + s.T1 + s.T2 - t
		v = s.V1 + s.Accel*left
		d = s.Length - (s.V1+v)/2*left
	default:
		return s.End, s.V1
	}
	d = math.Min(math.Max(d, 0), s.Length)
	return interp.Vec{s.Start[0] + s.Dir[0]*d, s.Start[1] + s.Dir[1]*d, s.Start[2] + s.Dir[2]*d}, v
}

// Planner turns Ops into Segments. It holds back up to two windows of moves; the
// last of them is always planned to end at rest.
type Planner struct {
	limits Limits
	window int
	pos    interp.Vec
	queue  []Segment
	speed  float64 // at which the last emitted segment ends
	emit   func(Segment)
}

// New returns a planner that starts at rest at pos; emit gets the segments.
func New(limits Limits, window int, pos interp.Vec, emit func(Segment)) *Planner {
	if window < 1 {
		window = 1
	}
	return &Planner{limits: limits, window: window, pos: pos, emit: emit, queue: make([]Segment, 0, 2*window)}
}

// Push adds one Op.
func (p *Planner) Push(op interp.Op) {
	if op.Kind == interp.Dwell || op.Kind == interp.Command {
		// Both happen at rest.
		p.Flush()
		p.emit(Segment{Kind: op.Kind, Line: op.Line, Code: op.Code, Value: op.Value, Start: p.pos, End: p.pos})
		return
	}
	delta := op.Target.Sub(p.pos)
	length := delta.Len()
	if length < 1e-9 {
		return
	}
	s := Segment{Kind: op.Kind, Line: op.Line, Start: p.pos, End: op.Target, Length: length}
	s.limit, s.Accel = math.Inf(1), math.Inf(1)
	for i := range delta {
		s.Dir[i] = delta[i] / length
		if u := math.Abs(s.Dir[i]); u > 1e-12 {
			s.limit = math.Min(s.limit, p.limits.MaxSpeed[i]/u)
			s.Accel = math.Min(s.Accel, p.limits.MaxAccel[i]/u)
		}
	}
	if op.Kind == interp.Feed {
		s.limit = math.Min(s.limit, op.Feed)
	}
	if n := len(p.queue); n > 0 {
		s.entry = p.corner(&p.queue[n-1], &s)
	}
	p.pos = op.Target
	p.queue = append(p.queue, s)
	if len(p.queue) >= 2*p.window {
		p.release(p.window)
	}
}

// Flush plans everything to the end, where the machine stands still.
func (p *Planner) Flush() { p.release(len(p.queue)) }

// corner returns the speed at which two moves may meet: that of a circle which
// touches both and stays within the allowed deviation of the corner.
func (p *Planner) corner(a, b *Segment) float64 {
	cos := -(a.Dir[0]*b.Dir[0] + a.Dir[1]*b.Dir[1] + a.Dir[2]*b.Dir[2])
	limit := math.Min(a.limit, b.limit)
	if cos > 0.999999 {
		return 0 // straight back
	}
	if cos < -0.999999 {
		return limit
	}
	sin := math.Sqrt((1 - cos) / 2) // of half the angle between the moves
	accel := math.Min(a.Accel, b.Accel)
	return math.Min(limit, math.Sqrt(accel*p.limits.Deviation*sin/(1-sin)))
}

// release plans the queue and emits its first n segments.
func (p *Planner) release(n int) {
	q := p.queue
	if len(q) == 0 {
		return
	}
	// Backward: enter each move no faster than it can still slow down for the
	// next one; the last ends at rest.
	exit := 0.0
	for i := len(q) - 1; i >= 0; i-- {
		s := &q[i]
		s.V1 = exit
		s.V0 = math.Min(math.Min(s.entry, s.limit), math.Sqrt(exit*exit+2*s.Accel*s.Length))
		exit = s.V0
	}
	// Forward: no faster than the moves before allow.
	speed := p.speed
	for i := range q {
		s := &q[i]
		s.V0 = speed
		s.V1 = math.Min(s.V1, math.Sqrt(speed*speed+2*s.Accel*s.Length))
		speed = s.V1
		if i < n {
			s.shape()
			p.speed = s.V1
			p.emit(*s)
		}
	}
	p.queue = q[:copy(q, q[n:])]
	if len(p.queue) > 0 {
		// What is left was reached at this speed; planning it again must allow it.
		p.queue[0].entry = p.speed
	}
}

// shape computes the trapezoid from the speeds at both ends.
func (s *Segment) shape() {
	top := math.Sqrt((2*s.Accel*s.Length + s.V0*s.V0 + s.V1*s.V1) / 2)
	s.Vmax = math.Max(math.Min(top, s.limit), math.Max(s.V0, s.V1))
	s.T0 = (s.Vmax - s.V0) / s.Accel
	s.T2 = (s.Vmax - s.V1) / s.Accel
	ramps := (s.V0+s.Vmax)/2*s.T0 + (s.V1+s.Vmax)/2*s.T2
	s.T1 = math.Max(0, (s.Length-ramps)/s.Vmax)
}
