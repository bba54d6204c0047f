package interp

import (
	"math"

	"cnc/internal/gcode"
)

// axes returns the two axes of the plane and the one that is normal to it.
func (in *Interp) axes() (a, b, c int) {
	switch in.plane {
	case 180:
		return 2, 0, 1
	case 190:
		return 1, 2, 0
	}
	return 0, 1, 2
}

// arc moves on a circle or helix, in chords that stay within the tolerance.
func (in *Interp) arc(b *gcode.Block, t Vec) error {
	a0, a1, a2 := in.axes()
	clockwise := in.motion == 20
	start := in.pos
	dx, dy := t[a0]-start[a0], t[a1]-start[a1]
	var cx, cy float64 // centre relative to the start

	if r, ok := b.Word('R'); ok {
		r = in.mm(r)
		d := math.Hypot(dx, dy)
		if d < 1e-9 {
			return gcode.Errorf(b.Line, "an arc by radius needs an end point that differs from its start")
		}
		h2 := r*r - d*d/4
		if h2 < 0 {
			// A half circle written with rounded numbers is meant as such.
			if d/2-math.Abs(r) > 0.01 {
				return gcode.Errorf(b.Line, "radius %.4f mm does not reach the end point, %.4f mm away", math.Abs(r), d)
			}
			h2 = 0
		}
		h := math.Sqrt(h2)
		if clockwise != (r < 0) {
			h = -h
		}
		cx, cy = dx/2-dy/d*h, dy/2+dx/d*h
	} else {
		letters := [3]byte{'I', 'J', 'K'}
		v0, ok0 := b.Word(letters[a0])
		v1, ok1 := b.Word(letters[a1])
		if !ok0 && !ok1 {
			return gcode.Errorf(b.Line, "arc without a centre (%c, %c) or radius (R)", letters[a0], letters[a1])
		}
		if _, ok := b.Word(letters[a2]); ok {
			return gcode.Errorf(b.Line, "%c does not belong to the selected plane", letters[a2])
		}
		cx, cy = in.mm(v0), in.mm(v1)
		if in.arcAbsolute {
			o := in.origin()
			cx += o[a0] - start[a0]
			cy += o[a1] - start[a1]
		}
	}

	r0, r1 := math.Hypot(cx, cy), math.Hypot(dx-cx, dy-cy)
	if r0 < 1e-6 {
		return gcode.Errorf(b.Line, "arc of radius zero")
	}
	if diff := math.Abs(r1 - r0); diff > 0.005 && diff > 0.001*r0 {
		return gcode.Errorf(b.Line, "radius differs between start (%.4f) and end (%.4f)", r0, r1)
	}
	from := math.Atan2(-cy, -cx)
	sweep := math.Atan2(dy-cy, dx-cx) - from
	if clockwise {
		if sweep >= -1e-9 {
			sweep -= 2 * math.Pi
		}
	} else if sweep <= 1e-9 {
		sweep += 2 * math.Pi
	}

	rise := t[a2] - start[a2]
	feed, err := in.feedFor(b, math.Hypot(r0*math.Abs(sweep), rise))
	if err != nil {
		return err
	}
	steps := 1
	if in.cfg.Tolerance < r0 {
		steps = int(math.Ceil(math.Abs(sweep) / (2 * math.Acos(1-in.cfg.Tolerance/r0))))
	}
	steps = min(max(steps, 1+int(2*math.Abs(sweep)/math.Pi)), 10000)
	for i := 1; i < steps; i++ {
		f := float64(i) / float64(steps)
		// The radius goes from r0 to r1 so that rounding in the program does not
		// end in a jump.
		r, phi := r0+(r1-r0)*f, from+sweep*f
		p := start
		p[a0] = start[a0] + cx + r*math.Cos(phi)
		p[a1] = start[a1] + cy + r*math.Sin(phi)
		p[a2] = start[a2] + rise*f
		if err := in.to(Feed, p, feed); err != nil {
			return err
		}
	}
	return in.to(Feed, t, feed)
}

// drill expands G81 (drill), G82 (with dwell) and G83 (peck) at each hole.
func (in *Interp) drill(b *gcode.Block) error {
	if in.plane != 170 {
		return gcode.Errorf(b.Line, "%s needs the XY plane (G17)", gcode.GName(in.motion))
	}
	if in.inverseTime {
		return gcode.Errorf(b.Line, "%s cannot be used with G93", gcode.GName(in.motion))
	}
	if err := in.cycleWords(b); err != nil {
		return err
	}
	repeat := 1
	if v, ok := b.Word('L'); ok {
		if v < 1 {
			return gcode.Errorf(b.Line, "L must be at least 1")
		}
		repeat = int(v)
	}
	feed, err := in.feedFor(b, 1)
	if err != nil {
		return err
	}
	o := in.origin()
	r, z := in.sticky.r+o[2], in.sticky.z+o[2]
	if in.incremental {
		r = in.sticky.r + in.pos[2]
		z = in.sticky.z + r
	}
	if z >= r {
		return gcode.Errorf(b.Line, "the bottom of the hole (Z) is not below R")
	}
	retract := math.Max(in.pos[2], r)
	for i := 0; i < repeat; i++ {
		x, y := in.pos[0], in.pos[1]
		if v, ok := b.Word('X'); ok {
			x = in.along(0, in.mm(v), o)
		}
		if v, ok := b.Word('Y'); ok {
			y = in.along(1, in.mm(v), o)
		}
		if err := in.hole(x, y, r, z, retract, feed); err != nil {
			return err
		}
	}
	return nil
}

func (in *Interp) along(axis int, v float64, o Vec) float64 {
	if in.incremental {
		return in.pos[axis] + v
	}
	return v + o[axis]
}

func (in *Interp) cycleWords(b *gcode.Block) error {
	c := &in.sticky
	if v, ok := b.Word('Z'); ok {
		c.z, c.hasZ = in.mm(v), true
	}
	if v, ok := b.Word('R'); ok {
		c.r, c.hasR = in.mm(v), true
	}
	if v, ok := b.Word('Q'); ok {
		c.q, c.hasQ = in.mm(v), v > 0
	}
	if v, ok := b.Word('P'); ok {
		c.p, c.hasDwell = v, true
	}
	name := gcode.GName(in.motion)
	switch {
	case !c.hasZ:
		return gcode.Errorf(b.Line, "%s needs a Z word", name)
	case !c.hasR:
		return gcode.Errorf(b.Line, "%s needs an R word", name)
	case in.motion == 820 && !c.hasDwell:
		return gcode.Errorf(b.Line, "G82 needs a P word")
	case in.motion == 830 && !c.hasQ:
		return gcode.Errorf(b.Line, "G83 needs a positive Q word")
	}
	return nil
}

func (in *Interp) hole(x, y, r, z, retract, feed float64) error {
	var err error
	step := func(kind Kind, t Vec) {
		if err == nil {
			err = in.to(kind, t, feed)
		}
	}
	if in.pos[2] < r {
		step(Rapid, Vec{in.pos[0], in.pos[1], r})
	}
	step(Rapid, Vec{x, y, in.pos[2]})
	step(Rapid, Vec{x, y, r})
	if in.motion == 830 {
		const clearance = 0.25 // where the rapid back into the hole ends
		if (r-z)/in.sticky.q > 1000 {
			return gcode.Errorf(in.line, "more than 1000 pecks")
		}
		for depth := r - in.sticky.q; depth > z && err == nil; depth -= in.sticky.q {
			step(Feed, Vec{x, y, depth})
			step(Rapid, Vec{x, y, r})
			step(Rapid, Vec{x, y, math.Min(depth+clearance, r)})
		}
	}
	step(Feed, Vec{x, y, z})
	if in.motion == 820 && err == nil {
		in.emit(Op{Kind: Dwell, Line: in.line, Target: in.pos, Value: in.sticky.p})
	}
	step(Rapid, Vec{x, y, retract})
	return err
}
