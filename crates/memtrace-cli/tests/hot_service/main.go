// A service that allocates in one known way, to see whether it is named.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"strings"
	"time"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("listening http://%s\n", listener.Addr())
	work := map[string]func(){
		"json":  readMessages,
		"tick":  (&Servo{}).controlLoop,
		"task":  func() { startTasks(false) },
		"fixed": func() { startTasks(true) },
		"text":  writeLines,
		"quiet": func() {},
	}[os.Args[len(os.Args)-1]]
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			work()
		}
	}()
	http.Serve(listener, nil)
}

// Message is decoded anew each time, into maps.
var message = `{"axis":"X","points":[` + strings.Repeat(`{"x":1.5,"y":2.5},`, 50) + `{"x":0}]}`

var sink any

func readMessages() {
	for i := 0; i < 10; i++ {
		var decoded map[string]any
		if err := json.Unmarshal([]byte(message), &decoded); err != nil {
			panic(err)
		}
		sink = decoded
	}
}

// Point is where an axis should be.
type Point struct{ X, Y, Z, Feed float64 }

// Servo moves to points.
type Servo struct{ last []*Point }

func (s *Servo) controlLoop() {
	s.last = s.last[:0]
	for i := 0; i < 2000; i++ {
		s.last = append(s.last, s.next(float64(i)))
	}
}

//go:noinline
func (s *Servo) next(t float64) *Point { return &Point{X: t, Y: 2 * t, Z: 3 * t} }

// MotionTask is one motion.
type MotionTask struct {
	Axis   string
	Buffer []float64
}

// NewMotionTask makes the task and its set points.
func NewMotionTask(axis string) *MotionTask {
	return &MotionTask{Axis: axis, Buffer: make([]float64, 1024)}
}

var kept = NewMotionTask("X")

func startTasks(recycle bool) {
	for i := 0; i < 10; i++ {
		task := kept
		if !recycle {
			task = NewMotionTask("X")
		}
		task.Buffer[0] = float64(i)
		sink = task
	}
}

func writeLines() {
	for i := 0; i < 1000; i++ {
		sink = fmt.Sprintf("G01 X%d Y%d F200 ; and a comment that makes it longer", i, 2*i)
	}
}
