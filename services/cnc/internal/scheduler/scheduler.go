// Package scheduler gives commands to the machine and does not wait for ever.
package scheduler

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"cnc/internal/fault"
	"cnc/internal/heapsize"
	"cnc/internal/machine"
)

// TraceBytes is the size of the telegram log that each command carries.
const TraceBytes = 16 << 10

// LeakBytes is what one goroutine that never returns keeps on the heap: the log,
// the command, the two channels and the closure, and the runtime's records of a
// goroutine and of its waiting. Its stack comes on top; it is not part of the heap.
var LeakBytes = heapsize.NoScan(TraceBytes) + heapsize.Scan(64) + 2*heapsize.Scan(112) +
	heapsize.Scan(48) + heapsize.Scan(440) + heapsize.Scan(96) + 40

// ErrTimeout is returned for a command that the machine did not answer in time.
var ErrTimeout = errors.New("the machine did not answer in time")

// Command is one instruction for the machine.
type Command struct {
	Line    int
	Request machine.Request
}

// Stats counts what the scheduler has done.
type Stats struct {
	Scheduled uint64 `json:"scheduled"`
	TimedOut  uint64 `json:"timed_out"`
	InFlight  int64  `json:"in_flight"`
}

// Scheduler runs commands with a timeout.
type Scheduler struct {
	machine   *machine.Machine
	timeout   time.Duration
	fault     *fault.Fault
	trace     int // size of a command's telegram log
	scheduled atomic.Uint64
	timedOut  atomic.Uint64
	inFlight  atomic.Int64 // goroutines that are in machine I/O
}

// New returns a scheduler for a machine.
func New(m *machine.Machine, timeout time.Duration, f *fault.Fault) *Scheduler {
	return &Scheduler{machine: m, timeout: timeout, fault: f, trace: TraceBytes}
}

// Stats returns the counters.
func (s *Scheduler) Stats() Stats {
	return Stats{s.scheduled.Load(), s.timedOut.Load(), s.inFlight.Load()}
}

// Schedule runs one command and waits until the machine has answered, the timeout
// is over or ctx ends.
//
// The machine's I/O runs in its own goroutine. It ends with the timeout only
// because it gets a context that does; with fault.Goroutine or fault.Hang active it
// gets one that never ends, and a command that gets no reply stays for ever.
func (s *Scheduler) Schedule(ctx context.Context, cmd *Command) error {
	s.scheduled.Add(1)
	leaky := s.fault.Active(fault.Goroutine) || s.fault.Active(fault.Hang)
	parent := ctx
	ctx, cancel := context.WithTimeout(parent, s.timeout)
	defer cancel()
	io := ctx
	if leaky {
		io = context.Background()
	}
	done := make(chan error, 1)
	go func() {
		s.inFlight.Add(1)
		defer s.inFlight.Add(-1)
		done <- s.machine.Execute(io, cmd.Request, newTrace(cmd, s.trace))
	}()
	select {
	case err := <-done:
		if err == nil || parent.Err() != nil || ctx.Err() == nil {
			return err
		}
	case <-ctx.Done():
		if leaky {
			s.fault.Leaked(LeakBytes, 8)
		}
	}
	if err := parent.Err(); err != nil {
		return err
	}
	s.timedOut.Add(1)
	return ErrTimeout
}

// newTrace starts the telegram log of a command with what was sent.
func newTrace(cmd *Command, size int) []byte {
	trace := make([]byte, size)
	for i := 0; i+16 <= len(trace); i += 16 {
		binary.LittleEndian.PutUint64(trace[i:], uint64(cmd.Line))
		binary.LittleEndian.PutUint64(trace[i+8:], uint64(cmd.Request.Code))
	}
	return trace
}
