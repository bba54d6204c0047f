// Package load keeps the controller busy with itself: it previews the built-in
// programs on all fixtures the way a host does before production (parse, plan,
// interpolate, simulate the axes), and runs the smaller traffic beside it.
package load

import (
	"context"
	"fmt"
	"math"
	"math/rand"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cnc/internal/gcode"
	"cnc/internal/interp"
	"cnc/internal/machine"
	"cnc/internal/planner"
	"cnc/internal/scheduler"
	"cnc/internal/servo"
	"cnc/internal/toolpath"
)

// Shape is how the load changes with time.
type Shape string

// The shapes.
const (
	Steady   Shape = "steady"
	Ramp     Shape = "ramp"     // from 20 % to 120 % in one period, then it stays there
	Sawtooth Shape = "sawtooth" // steady, but results are collected and dropped once a period
)

// ParseShape reads the name of a shape.
func ParseShape(s string) (Shape, error) {
	switch Shape(s) {
	case Steady, Ramp, Sawtooth:
		return Shape(s), nil
	}
	return "", fmt.Errorf("unknown load shape %q (steady, ramp, sawtooth)", s)
}

// factor is the share of the nominal load at a time.
func (s Shape) factor(t, period time.Duration) float64 {
	if s != Ramp {
		return 1
	}
	return 0.2 + math.Min(1, float64(t)/float64(period))
}

const (
	piece     = 100 // blocks that are planned together
	tick      = 10 * time.Millisecond
	retention = 5 * time.Second // how long a preview waits for its host
	maxPoints = 16 << 10        // set points of one preview
	decimate  = 12              // set points for each one that is kept
)

// Config of the engine.
type Config struct {
	Rate      float64 // blocks a second
	Shape     Shape
	Period    time.Duration
	CacheSize int
	Seed      int64
}

// Stats of the engine.
type Stats struct {
	Blocks    uint64         `json:"blocks"`
	Pieces    uint64         `json:"pieces"`
	Retained  int            `json:"retained_previews"`
	Collected int            `json:"collected_previews"`
	Factor    float64        `json:"factor"`
	Cache     toolpath.Stats `json:"cache"`
}

// Engine is the self load.
type Engine struct {
	cfg       Config
	limits    planner.Limits
	fixtures  [6]interp.Config
	programs  []source
	scheduler *scheduler.Scheduler
	cache     *toolpath.Cache
	random    *rand.Rand
	task      *task

	blocks, pieces      atomic.Uint64
	retained, collected atomic.Int64

	started, stepped time.Time
	dropped          time.Time // when the batch was dropped
	budget           float64   // blocks that are due

	mu     sync.Mutex
	factor float64

	recent []*preview // oldest first, for retention
	batch  []*preview // Sawtooth: until the end of the period
}

// source is the text of a program by line.
type source struct {
	name  string
	lines []string
}

// task is one program on one fixture.
type task struct {
	program *source
	fixture int
	piece   int
	state   *interp.Interp
}

// preview is what a host gets for a piece: the path that the axes really take.
type preview struct {
	program  string
	line     int
	finished time.Time
	seconds  float64
	worst    float64
	trace    []toolpath.Setpoint
}

// NewEngine returns an engine over programs by name.
func NewEngine(cfg Config, programs map[string]string, mill interp.Config, limits planner.Limits, s *scheduler.Scheduler) *Engine {
	e := &Engine{
		cfg: cfg, limits: limits, scheduler: s,
		cache:  toolpath.NewCache(cfg.CacheSize),
		random: rand.New(rand.NewSource(cfg.Seed)),
	}
	for name, text := range programs {
		e.programs = append(e.programs, source{name, strings.Split(strings.TrimRight(text, "\n"), "\n")})
	}
	sort.Slice(e.programs, func(i, k int) bool { return e.programs[i].name < e.programs[k].name })
	for f := range e.fixtures {
		e.fixtures[f] = mill
		for i := range mill.Offsets {
			e.fixtures[f].Offsets[i] = mill.Offsets[(i+f)%len(mill.Offsets)]
		}
	}
	return e
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Stats{
		Blocks: e.blocks.Load(), Pieces: e.pieces.Load(), Factor: e.factor, Cache: e.cache.Stats(),
		Retained: int(e.retained.Load()), Collected: int(e.collected.Load()),
	}
}

// Run runs the load until ctx ends.
func (e *Engine) Run(ctx context.Context) {
	if e.cfg.Rate <= 0 || len(e.programs) == 0 {
		return
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	e.begin(time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			e.step(ctx, now)
		}
	}
}

func (e *Engine) begin(now time.Time) { e.started, e.stepped, e.dropped = now, now, now }

// step does what is due.
func (e *Engine) step(ctx context.Context, now time.Time) {
	factor := e.cfg.Shape.factor(now.Sub(e.started), e.cfg.Period)
	e.mu.Lock()
	e.factor = factor
	e.mu.Unlock()
	// A machine that was suspended does not make up for hours.
	e.budget += e.cfg.Rate * factor * math.Min(now.Sub(e.stepped).Seconds(), 0.25)
	e.stepped = now
	for e.budget >= piece && ctx.Err() == nil {
		e.budget -= float64(e.previewPiece(ctx, now))
	}
	e.expire(now)
	if e.cfg.Shape == Sawtooth && now.Sub(e.dropped) >= e.cfg.Period {
		e.dropped = now
		e.batch = nil
		e.collected.Store(0)
	}
}

// previewPiece does one piece of the current task and returns its blocks.
func (e *Engine) previewPiece(ctx context.Context, now time.Time) int {
	if e.task == nil {
		f := e.random.Intn(len(e.fixtures))
		e.task = &task{program: &e.programs[e.random.Intn(len(e.programs))], fixture: f, state: interp.New(e.fixtures[f])}
	}
	t := e.task
	key := toolpath.Key{Program: t.program.name, Fixture: t.fixture, Piece: t.piece}
	path := e.cache.Get(key)
	if path == nil {
		var err error
		if path, err = e.plan(t); err != nil {
			// The built-in programs are tested; a bad one must not stop the rest.
			e.task = nil
			return piece
		}
		e.cache.Put(key, path)
	}
	next := path.Next
	t.state = &next
	t.piece++
	if t.piece*piece >= len(t.program.lines) || next.Ended() {
		e.task = nil
	}
	cmd := &scheduler.Command{Line: t.piece * piece, Request: machine.Request{Code: machine.SyncCode}}
	if err := e.scheduler.Schedule(ctx, cmd); err != nil {
		return max(path.Blocks, 1)
	}
	e.keep(e.simulate(t, path, now))
	e.blocks.Add(uint64(path.Blocks))
	e.pieces.Add(1)
	return max(path.Blocks, 1)
}

// plan parses and plans the next piece of a task.
func (e *Engine) plan(t *task) (*toolpath.Path, error) {
	lines := t.program.lines[t.piece*piece:]
	lines = lines[:min(len(lines), piece)]
	state := *t.state
	start := state.Position()
	segments := make([]planner.Segment, 0, 2*piece)
	p := planner.New(e.limits, 32, start, func(s planner.Segment) { segments = append(segments, s) })
	for i, line := range lines {
		block, err := gcode.Parse(line, t.piece*piece+i+1)
		if err != nil {
			return nil, err
		}
		if err := state.Block(block, p.Push); err != nil {
			return nil, err
		}
	}
	p.Flush()
	state.Forget()
	return toolpath.NewPath(start, segments, len(lines), state), nil
}

// simulate drives the axes along a path and keeps some of the points.
func (e *Engine) simulate(t *task, path *toolpath.Path, now time.Time) *preview {
	// Long pieces are previewed with coarser steps.
	dt := math.Max(0.001, path.Seconds/maxPoints)
	points := path.Interpolate(dt)
	var axes [3]servo.Axis
	for i := range axes {
		axes[i].MaxAccel = 2 * e.limits.MaxAccel[i]
		axes[i].Reset(path.Start[i])
	}
	r := &preview{
		program: t.program.name, line: t.piece * piece, finished: now, seconds: path.Seconds,
		trace: make([]toolpath.Setpoint, 0, len(points)/decimate+1),
	}
	for i := range points {
		for k := range axes {
			axes[k].Step(points[i].Pos[k], 0.001)
			r.worst = math.Max(r.worst, math.Abs(axes[k].Error))
		}
		if i%decimate == 0 {
			p := points[i]
			p.Pos = interp.Vec{axes[0].Pos, axes[1].Pos, axes[2].Pos}
			r.trace = append(r.trace, p)
		}
	}
	return r
}

// keep retains a preview until its time is over.
func (e *Engine) keep(r *preview) {
	e.recent = append(e.recent, r)
	e.retained.Store(int64(len(e.recent)))
	if e.cfg.Shape == Sawtooth && e.pieces.Load()%4 == 0 {
		e.batch = append(e.batch, r)
		e.collected.Store(int64(len(e.batch)))
	}
}

func (e *Engine) expire(now time.Time) {
	n := 0
	for n < len(e.recent) && now.Sub(e.recent[n].finished) >= retention {
		n++
	}
	if n == 0 {
		return
	}
	rest := copy(e.recent, e.recent[n:])
	for i := rest; i < len(e.recent); i++ {
		e.recent[i] = nil
	}
	e.recent = e.recent[:rest]
	e.retained.Store(int64(rest))
}
