package scheduler

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"cnc/internal/fault"
	"cnc/internal/machine"
)

func lost() *Command { return &Command{Request: machine.Request{Code: machine.SyncCode, Lost: true}} }

func settle(want int) int {
	n := 0
	for i := 0; i < 100; i++ {
		if n = runtime.NumGoroutine(); n <= want {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return n
}

func TestTimeoutEndsTheGoroutine(t *testing.T) {
	m := machine.New()
	s := New(m, 20*time.Millisecond, nil)
	before := runtime.NumGoroutine()
	for i := 0; i < 10; i++ {
		if err := s.Schedule(context.Background(), lost()); !errors.Is(err, ErrTimeout) {
			t.Fatalf("got %v", err)
		}
	}
	if n := settle(before); n > before {
		t.Errorf("%d goroutines are left", n-before)
	}
	if st := m.State(); st.Pending != 0 {
		t.Errorf("%d requests are pending", st.Pending)
	}
	if st := s.Stats(); st.TimedOut != 10 || st.Scheduled != 10 {
		t.Errorf("%+v", st)
	}
}

func TestFaultLeavesTheGoroutine(t *testing.T) {
	m := machine.New()
	f := fault.New(fault.Goroutine, 0, 1<<20)
	f.Arm(context.Background())
	s := New(m, 10*time.Millisecond, f)
	before := runtime.NumGoroutine()
	for i := 0; i < 10; i++ {
		if err := s.Schedule(context.Background(), lost()); !errors.Is(err, ErrTimeout) {
			t.Fatalf("got %v", err)
		}
	}
	time.Sleep(50 * time.Millisecond)
	if n := s.Stats().InFlight; n != 10 {
		t.Errorf("%d goroutines are left, want 10", n)
	}
	if tr := f.Truth(1); tr.LeakedBytes != 10*LeakBytes {
		t.Errorf("%+v", tr)
	}
	m.Close()
	if n := settle(before); n > before {
		t.Errorf("%d goroutines are left after Close", n-before)
	}
	if err := s.Schedule(context.Background(), lost()); !errors.Is(err, machine.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestCommandsReachTheMachine(t *testing.T) {
	m := machine.New()
	s := New(m, time.Second, nil)
	for _, r := range []machine.Request{{Code: 6, Value: 4}, {Code: 4, Value: 900}, {Code: 8}, {Code: 7}} {
		if err := s.Schedule(context.Background(), &Command{Request: r}); err != nil {
			t.Fatal(err)
		}
	}
	if st := m.State(); st.Tool != 4 || st.Spindle != -900 || !st.Coolant || !st.Mist {
		t.Errorf("%+v", st)
	}
	if err := s.Schedule(context.Background(), &Command{Request: machine.Request{Code: 99}}); err == nil {
		t.Error("M99 was accepted")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Schedule(ctx, lost()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
