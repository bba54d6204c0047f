// Package machine simulates the machine's I/O: spindle, coolant, tool changer and
// probe behind a field bus. Like a real bus it can lose a reply, and like a real
// machine it can hang; whoever waits for a reply that does not come waits until the
// request is aborted or the machine is closed.
package machine

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Request is one message to the machine.
type Request struct {
	Code  int     // M code
	Value float64 // spindle speed, tool
	Lost  bool    // the simulated bus loses the reply
}

// ErrClosed is returned once the machine is closed.
var ErrClosed = errors.New("machine is closed")

// State of the machine.
type State struct {
	Spindle  float64 `json:"spindle_rpm"` // negative is counter-clockwise
	Coolant  bool    `json:"coolant"`
	Mist     bool    `json:"mist"`
	Tool     int     `json:"tool"`
	Requests uint64  `json:"requests"`
	Pending  int     `json:"pending"`
	Hung     bool    `json:"hung"`
}

// Machine is the bus master.
type Machine struct {
	mu      sync.Mutex
	state   State
	next    uint64
	pending map[uint64]chan error // requests without a reply
	closed  bool
}

// New returns a machine with everything off.
func New() *Machine { return &Machine{pending: make(map[uint64]chan error)} }

// Execute sends a request, logs the telegrams in trace and waits for the reply. It
// returns early when ctx ends.
func (m *Machine) Execute(ctx context.Context, r Request, trace []byte) error {
	id, reply, err := m.send(r)
	if err != nil {
		return err
	}
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { m.abort(id, ctx.Err()) })()
	}
	err = <-reply
	copy(trace, fmt.Sprintf("reply %d M%d %v", id, r.Code, err))
	return err
}

func (m *Machine) send(r Request) (uint64, chan error, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, nil, ErrClosed
	}
	m.next++
	m.state.Requests++
	reply := make(chan error, 1)
	if r.Lost || m.state.Hung {
		m.pending[m.next] = reply
		return m.next, reply, nil
	}
	reply <- m.apply(r)
	return m.next, reply, nil
}

func (m *Machine) apply(r Request) error {
	switch r.Code {
	case 3:
		m.state.Spindle = r.Value
	case 4:
		m.state.Spindle = -r.Value
	case 5:
		m.state.Spindle = 0
	case 6:
		m.state.Spindle = 0 // the changer needs a spindle at rest
		m.state.Tool = int(r.Value)
	case 7:
		m.state.Mist = true
	case 8:
		m.state.Coolant = true
	case 9:
		m.state.Coolant, m.state.Mist = false, false
	case 2, 30:
		m.state.Spindle, m.state.Coolant, m.state.Mist = 0, false, false
	case 0, 1, SyncCode:
	default:
		return fmt.Errorf("the machine does not know M%d", r.Code)
	}
	return nil
}

// SyncCode asks for nothing but a reply.
const SyncCode = -1

// abort gives up a request.
func (m *Machine) abort(id uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if reply, ok := m.pending[id]; ok {
		delete(m.pending, id)
		reply <- err
	}
}

// Hang makes the machine take requests and answer none from now on.
func (m *Machine) Hang() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Hung = true
}

// Close aborts all requests and refuses new ones.
func (m *Machine) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for id, reply := range m.pending {
		delete(m.pending, id)
		reply <- ErrClosed
	}
}

// State returns the machine's state.
func (m *Machine) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	s.Pending = len(m.pending)
	return s
}
