// Package motion starts and stops the motion tasks of the axes.
package motion

import (
	"context"
	"strconv"
	"sync"
	"time"
)

// State of a task.
type State uint8

// The states.
const (
	Idle State = iota
	Running
	Done
)

// Points is the number of set points of a task.
const Points = 1024

// Hot is the function that allocates when tasks are not recycled.
const Hot = "cnc/internal/motion.NewMotionTask"

// MotionTask is one motion of one axis.
type MotionTask struct {
	Axis   string
	State  State
	Buffer []float64
}

// NewMotionTask allocates a task: the struct and 8 KiB of set points.
func NewMotionTask(axis string) *MotionTask {
	return &MotionTask{Axis: axis, State: Idle, Buffer: make([]float64, Points)}
}

// Axis starts and stops the tasks of one axis, one at a time.
type Axis struct {
	name    string
	recycle bool
	task    *MotionTask
}

// NewAxis returns an axis; with recycle it uses the memory of its first task for all.
func NewAxis(name string, recycle bool) *Axis { return &Axis{name: name, recycle: recycle} }

// Start returns a new task. The set points of a recycled one are those of its last
// motion: they are to be overwritten.
func (a *Axis) Start() *MotionTask {
	if a.task == nil {
		a.task = NewMotionTask(a.name)
	}
	a.task.State = Running
	return a.task
}

// Stop ends the task.
func (a *Axis) Stop() {
	a.task.State = Done
	if !a.recycle {
		a.task = nil
	}
}

// Plan fills a task with set points that go from one position to another.
func (t *MotionTask) Plan(from, to float64) {
	step := (to - from) / float64(len(t.Buffer)-1)
	for i := range t.Buffer {
		t.Buffer[i] = from + step*float64(i)
	}
}

// Config of the axes.
type Config struct {
	Rate    float64 // tasks a second on each axis, 0 for none
	Axes    int
	Recycle bool
}

// Run starts and stops tasks on all axes until ctx ends.
func Run(ctx context.Context, c Config) {
	if c.Rate <= 0 {
		return
	}
	var wg sync.WaitGroup
	for i := 0; i < c.Axes; i++ {
		axis := NewAxis("A"+strconv.Itoa(i), c.Recycle)
		wg.Add(1)
		go func() {
			defer wg.Done()
			axis.run(ctx, time.Duration(float64(time.Second)/c.Rate))
		}()
	}
	wg.Wait()
}

// run has each task last until the next begins.
func (a *Axis) run(ctx context.Context, period time.Duration) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for position := 0.0; ; position = 100 - position {
		a.Start().Plan(position, 100-position)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			a.Stop()
		}
	}
}
