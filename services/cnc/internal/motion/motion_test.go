package motion

import (
	"testing"
)

func TestRecycledTasksDoNotAllocate(t *testing.T) {
	for _, c := range []struct {
		recycle bool
		want    float64
	}{{false, 2}, {true, 0}} {
		axis := NewAxis("X", c.recycle)
		last := 0.0
		n := testing.AllocsPerRun(100, func() {
			task := axis.Start()
			task.Plan(last, last+10)
			if task.State != Running || task.Buffer[0] != last || task.Buffer[Points-1] != last+10 {
				t.Fatalf("%v: set points from %v to %v", task.State, task.Buffer[0], task.Buffer[Points-1])
			}
			last += 10
			axis.Stop()
		})
		if n != c.want {
			t.Errorf("recycle %v: %v allocations a task, want %v", c.recycle, n, c.want)
		}
	}
}
