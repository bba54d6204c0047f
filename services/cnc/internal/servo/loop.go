// Package servo moves the axes: a control loop of 1 kHz on its own thread reads
// the planned path, closes the position loop of three simulated axes and keeps
// books about its own jitter. Nothing in the loop allocates or takes a lock, so
// that neither the garbage collector's assists nor a reader of the state can
// delay it.
package servo

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"cnc/internal/interp"
	"cnc/internal/planner"
)

// Period of the control loop.
const Period = time.Millisecond

// Cursor evaluates a path along time.
type Cursor struct {
	path []planner.Segment
	i    int
	t    float64
}

// NewCursor starts at the beginning of a path.
func NewCursor(path []planner.Segment) Cursor { return Cursor{path: path} }

// Advance goes on by dt seconds and returns where the path is then, the speed along
// it, the line of the program, and whether the end was not reached.
func (c *Cursor) Advance(dt float64) (pos interp.Vec, speed float64, line int, more bool) {
	c.t += dt
	for c.i < len(c.path) {
		s := &c.path[c.i]
		d := s.Duration()
		if c.t < d {
			pos, speed = s.At(c.t)
			return pos, speed, s.Line, true
		}
		c.t -= d
		c.i++
	}
	if n := len(c.path); n > 0 {
		pos, line = c.path[n-1].End, c.path[n-1].Line
	}
	return pos, 0, line, false
}

// Axis is a position controller with velocity feed-forward on a simulated motor
// and slide.
type Axis struct {
	Pos, Vel float64
	Error    float64 // following error, mm
	last     float64
	MaxAccel float64
}

// Step runs one control period.
func (a *Axis) Step(setpoint, dt float64) {
	const positionGain, velocityGain = 60, 400 // 1/s
	forward := (setpoint - a.last) / dt
	a.last = setpoint
	a.Error = setpoint - a.Pos
	accel := velocityGain * (forward + positionGain*a.Error - a.Vel)
	accel = math.Min(math.Max(accel, -a.MaxAccel), a.MaxAccel)
	a.Vel += accel * dt
	a.Pos += a.Vel * dt
}

// Reset puts the axis at rest at a position.
func (a *Axis) Reset(pos float64) {
	*a = Axis{Pos: pos, last: pos, MaxAccel: a.MaxAccel}
}

// run is one path on its way through the loop.
type run struct {
	cursor Cursor
	steps  int // control periods simulated in one real one
	done   chan struct{}
	worst  float64 // following error; read after done
}

// Loop is the control loop.
type Loop struct {
	axes    [3]Axis
	hold    interp.Vec // set point while there is no path
	current atomic.Pointer[run]
	jitter  atomic.Pointer[jitter]
	busy    sync.Mutex // held by Execute

	pos, vel, err [3]atomic.Uint64 // float bits, for readers
	line          atomic.Int64
	ticks         atomic.Uint64
	missed        atomic.Uint64
}

// ErrStopped is returned for a path that was cut short.
var ErrStopped = errors.New("motion stopped")

// NewLoop returns a loop with the axes at rest at pos.
func NewLoop(limits planner.Limits, pos interp.Vec) *Loop {
	l := &Loop{hold: pos}
	l.jitter.Store(new(jitter))
	for i := range l.axes {
		// Motors have some torque beyond what the planner uses.
		l.axes[i].MaxAccel = 2 * limits.MaxAccel[i]
		l.axes[i].Reset(pos[i])
		l.pos[i].Store(math.Float64bits(pos[i]))
	}
	return l
}

// Run runs the loop until ctx ends. Deadlines are absolute: a late tick does not
// move the next one. A loop that is late by more than a period skips what it missed.
func (l *Loop) Run(ctx context.Context) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	prepareThread()
	stop := ctx.Done()
	deadline := time.Now().Add(Period)
	for {
		select {
		case <-stop:
			return
		default:
		}
		sleepUntil(deadline)
		late := time.Since(deadline)
		if late < 0 {
			late = -late
		}
		l.jitter.Load().record(uint64(late))
		l.tick()
		deadline = deadline.Add(Period)
		if late > Period {
			n := late / Period
			l.missed.Add(uint64(n))
			deadline = deadline.Add(n * Period)
		}
	}
}

func (l *Loop) tick() {
	const dt = float64(Period) / float64(time.Second)
	r := l.current.Load()
	if r == nil {
		l.step(dt)
	} else {
		more := true
		for i := 0; i < r.steps && more; i++ {
			var line int
			l.hold, _, line, more = r.cursor.Advance(dt)
			l.line.Store(int64(line))
			r.worst = math.Max(r.worst, l.step(dt))
		}
		if !more && l.current.CompareAndSwap(r, nil) {
			close(r.done)
		}
	}
	for i := range l.axes {
		l.pos[i].Store(math.Float64bits(l.axes[i].Pos))
		l.vel[i].Store(math.Float64bits(l.axes[i].Vel))
		l.err[i].Store(math.Float64bits(l.axes[i].Error))
	}
	l.ticks.Add(1)
}

func (l *Loop) step(dt float64) (worst float64) {
	for i := range l.axes {
		l.axes[i].Step(l.hold[i], dt)
		worst = math.Max(worst, math.Abs(l.axes[i].Error))
	}
	return worst
}

// Execute moves along a path, `speed` times faster than real time, and returns the
// largest following error in mm. It waits for the end of the path or of ctx.
func (l *Loop) Execute(ctx context.Context, path []planner.Segment, speed int) (float64, error) {
	if len(path) == 0 {
		return 0, nil
	}
	l.busy.Lock()
	defer l.busy.Unlock()
	r := &run{cursor: NewCursor(path), steps: max(speed, 1), done: make(chan struct{})}
	l.current.Store(r)
	select {
	case <-r.done:
		return r.worst, nil
	case <-ctx.Done():
		if l.current.CompareAndSwap(r, nil) {
			return 0, ErrStopped
		}
		<-r.done
		return r.worst, nil
	}
}

// State is what the loop shows.
type State struct {
	Position  interp.Vec  `json:"position_mm"`
	Velocity  interp.Vec  `json:"velocity_mm_s"`
	Following interp.Vec  `json:"following_error_mm"`
	Line      int64       `json:"line"`
	Moving    bool        `json:"moving"`
	Ticks     uint64      `json:"ticks"`
	Missed    uint64      `json:"missed_ticks"`
	Jitter    JitterStats `json:"jitter_ns"`
}

// State returns the state of the axes and of the loop.
func (l *Loop) State() State {
	s := l.Axes()
	s.Moving = l.current.Load() != nil
	s.Ticks, s.Missed = l.ticks.Load(), l.missed.Load()
	s.Jitter = l.jitter.Load().stats()
	return s
}

// Axes returns the part of the state that changes with each tick.
func (l *Loop) Axes() State {
	var s State
	for i := range l.axes {
		s.Position[i] = math.Float64frombits(l.pos[i].Load())
		s.Velocity[i] = math.Float64frombits(l.vel[i].Load())
		s.Following[i] = math.Float64frombits(l.err[i].Load())
	}
	s.Line = l.line.Load()
	return s
}

// ResetJitter forgets the jitter so far.
func (l *Loop) ResetJitter() {
	l.jitter.Store(new(jitter))
	l.missed.Store(0)
}
