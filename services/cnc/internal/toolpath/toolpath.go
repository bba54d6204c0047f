// Package toolpath keeps planned pieces of programs for the next workpiece, up to a
// fixed number: the piece that was not used for the longest time goes first.
package toolpath

import (
	"container/list"
	"math"
	"sync"

	"cnc/internal/interp"
	"cnc/internal/planner"
)

// Key names a piece of a program on a fixture.
type Key struct {
	Program string
	Fixture int
	Piece   int
}

// Span is a planned segment without what can be computed again.
type Span struct {
	End            interp.Vec
	V0, Vmax, V1   float64
	Accel, Seconds float64
	Line           int32
	Code           int16
	Kind           interp.Kind
}

// Path is a planned piece.
type Path struct {
	Start   interp.Vec
	Spans   []Span
	Seconds float64
	Blocks  int
	Next    interp.Interp // modal state after the piece
}

// NewPath keeps what is needed of planned segments.
func NewPath(start interp.Vec, segments []planner.Segment, blocks int, next interp.Interp) *Path {
	p := &Path{Start: start, Spans: make([]Span, len(segments)), Blocks: blocks, Next: next}
	for i := range segments {
		s := &segments[i]
		p.Spans[i] = Span{
			End: s.End, V0: s.V0, Vmax: s.Vmax, V1: s.V1, Accel: s.Accel, Seconds: s.Duration(),
			Line: int32(s.Line), Code: int16(s.Code), Kind: s.Kind,
		}
		p.Seconds += s.Duration()
	}
	return p
}

// Setpoint is what the axes are told at one moment.
type Setpoint struct {
	Time  float64
	Pos   interp.Vec
	Vel   interp.Vec
	Speed float64
}

// Interpolate returns the set points of a path, one for each step of dt seconds.
func (p *Path) Interpolate(dt float64) []Setpoint {
	out := make([]Setpoint, 0, int(p.Seconds/dt)+1)
	start, begin := p.Start, 0.0
	t := 0.0
	for i := range p.Spans {
		s := &p.Spans[i]
		delta := s.End.Sub(start)
		length := delta.Len()
		for ; t < begin+s.Seconds && len(out) < cap(out); t += dt {
			d, v := s.at(t-begin, length)
			point := Setpoint{Time: t, Pos: s.End, Speed: v}
			if length > 0 {
				for k := range delta {
					u := delta[k] / length
					point.Pos[k] = start[k] + u*d
					point.Vel[k] = u * v
				}
			}
			out = append(out, point)
		}
		start, begin = s.End, begin+s.Seconds
	}
	return out
}

// at returns distance and speed after t seconds in a span.
func (s *Span) at(t, length float64) (d, v float64) {
	if length == 0 || s.Accel == 0 {
		return 0, 0
	}
	up, down := (s.Vmax-s.V0)/s.Accel, (s.Vmax-s.V1)/s.Accel
	switch {
	case t < up:
		v = s.V0 + s.Accel*t
		d = (s.V0 + v) / 2 * t
	case t < s.Seconds-down:
		v = s.Vmax
		d = (s.V0+s.Vmax)/2*up + v*(t-up)
	default:
		left := s.Seconds - t
		v = s.V1 + s.Accel*left
		d = length - (s.V1+v)/2*left
	}
	return math.Min(math.Max(d, 0), length), v
}

// Stats describes a cache.
type Stats struct {
	Len       int    `json:"len"`
	Capacity  int    `json:"capacity"`
	Hits      uint64 `json:"hits"`
	Misses    uint64 `json:"misses"`
	Evictions uint64 `json:"evictions"`
}

// Cache is an LRU cache of paths.
type Cache struct {
	mu    sync.Mutex
	order *list.List // of *entry, latest first
	byKey map[Key]*list.Element
	stats Stats
}

type entry struct {
	key  Key
	path *Path
}

// NewCache returns a cache of a number of pieces; 0 keeps nothing.
func NewCache(capacity int) *Cache {
	return &Cache{order: list.New(), byKey: make(map[Key]*list.Element), stats: Stats{Capacity: capacity}}
}

// Get returns a path, or nil.
func (c *Cache) Get(k Key) *Path {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[k]
	if e == nil {
		c.stats.Misses++
		return nil
	}
	c.stats.Hits++
	c.order.MoveToFront(e)
	return e.Value.(*entry).path
}

// Put keeps a path.
func (c *Cache) Put(k Key, p *Path) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stats.Capacity <= 0 {
		return
	}
	if e := c.byKey[k]; e != nil {
		e.Value.(*entry).path = p
		c.order.MoveToFront(e)
		return
	}
	for c.order.Len() >= c.stats.Capacity {
		last := c.order.Back()
		delete(c.byKey, last.Value.(*entry).key)
		c.order.Remove(last)
		c.stats.Evictions++
	}
	c.byKey[k] = c.order.PushFront(&entry{k, p})
}

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Len = c.order.Len()
	return s
}
