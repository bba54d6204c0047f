// Package job runs programs on the machine, one after the other: parse, plan, move
// the axes, command the machine, report.
package job

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"cnc/internal/events"
	"cnc/internal/gcode"
	"cnc/internal/interp"
	"cnc/internal/machine"
	"cnc/internal/planner"
	"cnc/internal/scheduler"
	"cnc/internal/servo"
)

// Window is how many moves the planner looks ahead.
const Window = 64

// States of a job.
const (
	Queued  = "queued"
	Running = "running"
	Done    = "done"
	Failed  = "failed"
)

// Job is one program on its way.
type Job struct {
	ID       string     `json:"id"`
	Program  string     `json:"program"`
	State    string     `json:"state"`
	Error    string     `json:"error,omitempty"`
	Blocks   int        `json:"blocks"`
	Segments int        `json:"segments"`
	Length   float64    `json:"length_mm"`
	Seconds  float64    `json:"motion_s"`           // in machine time
	Worst    float64    `json:"following_error_mm"` // largest
	Created  time.Time  `json:"created"`
	Finished *time.Time `json:"finished,omitempty"`
	program  *gcode.Program
}

// ErrBusy is returned when too many jobs wait.
var ErrBusy = errors.New("too many jobs are waiting")

const (
	maxQueued   = 16
	maxFinished = 64 // older ones are forgotten
)

// Manager owns the jobs.
type Manager struct {
	cfg       interp.Config
	limits    planner.Limits
	loop      *servo.Loop
	scheduler *scheduler.Scheduler
	reports   *Reports
	bus       *events.Bus
	speed     int

	ids   atomic.Uint64
	queue chan *Job
	mu    sync.Mutex
	jobs  []*Job // oldest first
}

// NewManager returns a manager; speed is how much faster than real time the axes
// are simulated for jobs.
func NewManager(cfg interp.Config, limits planner.Limits, loop *servo.Loop, s *scheduler.Scheduler,
	reports *Reports, bus *events.Bus, speed int) *Manager {
	return &Manager{cfg: cfg, limits: limits, loop: loop, scheduler: s, reports: reports, bus: bus,
		speed: speed, queue: make(chan *Job, maxQueued)}
}

// NextID reserves the name of a job.
func (m *Manager) NextID() string { return fmt.Sprintf("job-%d", m.ids.Add(1)) }

// Submit checks a program and queues it.
func (m *Manager) Submit(id, name, text string) (Job, error) {
	program, err := gcode.ParseProgram(name, text)
	if err != nil {
		return Job{}, err
	}
	if len(program.Blocks) == 0 {
		return Job{}, &gcode.Error{Line: 1, Msg: "the program is empty"}
	}
	j := &Job{ID: id, Program: name, State: Queued, Blocks: len(program.Blocks), Created: time.Now(), program: program}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case m.queue <- j:
	default:
		return Job{}, ErrBusy
	}
	m.jobs = append(m.jobs, j)
	m.forget()
	return *j, nil
}

// forget drops the oldest finished jobs.
func (m *Manager) forget() {
	finished := 0
	for _, j := range m.jobs {
		if j.Finished != nil {
			finished++
		}
	}
	kept := m.jobs[:0]
	for _, j := range m.jobs {
		if j.Finished != nil && finished > maxFinished {
			finished--
			continue
		}
		kept = append(kept, j)
	}
	for i := len(kept); i < len(m.jobs); i++ {
		m.jobs[i] = nil
	}
	m.jobs = kept
}

// Get returns a job.
func (m *Manager) Get(id string) (Job, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, j := range m.jobs {
		if j.ID == id {
			return *j, true
		}
	}
	return Job{}, false
}

// List returns the jobs, oldest first.
func (m *Manager) List() []Job {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Job, len(m.jobs))
	for i, j := range m.jobs {
		out[i] = *j
	}
	return out
}

// Run works on the jobs until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-m.queue:
			m.update(j, func() { j.State = Running })
			err := m.execute(ctx, j)
			m.update(j, func() {
				now := time.Now()
				j.Finished, j.program = &now, nil
				j.State = Done
				if err != nil {
					j.State, j.Error = Failed, err.Error()
				}
			})
			m.reports.Publish(j.ID, j.Program, j.Blocks, j.Seconds, j.Worst)
			m.bus.Publish(events.Event{Jobs: []string{j.ID}})
		}
	}
}

func (m *Manager) update(j *Job, change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// execute plans the program piece by piece: a piece ends where the machine stands
// still for a command or a dwell.
func (m *Manager) execute(ctx context.Context, j *Job) error {
	in := interp.New(m.cfg)
	var path []planner.Segment
	var failed error
	run := func() {
		if failed != nil || len(path) == 0 {
			return
		}
		worst, err := m.loop.Execute(ctx, path, m.speed)
		failed = err
		m.update(j, func() {
			for i := range path {
				j.Length += path[i].Length
				j.Seconds += path[i].Duration()
			}
			j.Segments += len(path)
			j.Worst = max(j.Worst, worst)
		})
		path = path[:0]
	}
	// The axes stand where the last job left them and go home first.
	plan := planner.New(m.limits, Window, m.loop.Axes().Position, func(s planner.Segment) {
		if s.Kind != interp.Command {
			path = append(path, s)
			return
		}
		run()
		if failed == nil {
			cmd := &scheduler.Command{Line: s.Line, Request: machine.Request{Code: s.Code, Value: s.Value}}
			if err := m.scheduler.Schedule(ctx, cmd); err != nil {
				failed = gcode.Errorf(s.Line, "M%d: %v", s.Code, err)
			}
		}
	})
	plan.Push(interp.Op{Kind: interp.Rapid, Target: in.Position()})
	plan.Flush()
	for _, b := range j.program.Blocks {
		if err := in.Block(b, plan.Push); err != nil {
			plan.Flush()
			run()
			return err
		}
		if failed != nil || in.Ended() {
			break
		}
	}
	plan.Flush()
	run()
	return failed
}
