package load

import (
	"context"
	"fmt"
	"math/rand"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"cnc/internal/events"
	"cnc/internal/fault"
	"cnc/internal/gcode"
	"cnc/internal/job"
	"cnc/internal/machine"
	"cnc/internal/scheduler"
	"cnc/internal/servo"
)

// Background is the rate, in bytes a second, of the traffic that no fault asks for.
const Background = 128 << 10

// BodyBytes is the size of the body of a simulated request.
const BodyBytes = 16 << 10

// Traffic is the work that each possible fault would leak on. All of it runs all the
// time, so that a fault changes what is kept and nothing else.
type Traffic struct {
	Fault     *fault.Fault
	Scheduler *scheduler.Scheduler
	Cache     *gcode.Cache
	Loop      *servo.Loop
	History   *servo.History
	Reports   *job.Reports
	Bus       *events.Bus
	Parser    *gcode.Parser
	Drive     *servo.Drive
	Sections  []*Section
	Watch     func(r *http.Request, job string) error

	open []string // jobs of requests that have not ended
}

// Run runs all traffic until ctx ends.
func (t *Traffic) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for kind, step := range map[fault.Kind]func(context.Context) func() int64{
		fault.Goroutine: t.commands,
		fault.MapKey:    t.stream,
		fault.Slice:     t.samples,
		fault.SyncMap:   t.finished,
		fault.Closure:   t.requests,
		fault.Pool:      t.variables,
		fault.Finalizer: t.moves,
	} {
		rate := int64(Background)
		switch asked := t.Fault.Kind(); {
		case asked == fault.Finalizer && kind == asked:
			// What the finalizers release all the same comes on top.
			rate = t.Fault.Rate() + int64(servo.DMABytes*time.Second/servo.DriveCycle)
		case asked == kind, asked == fault.Hang && kind == fault.Goroutine:
			rate = t.Fault.Rate()
		}
		step := step
		wg.Add(1)
		go func() {
			defer wg.Done()
			pace(ctx, rate, step(ctx))
		}()
	}
	rate := int64(Background)
	if t.Fault.Kind() == fault.Tag {
		rate = t.Fault.Rate()
	}
	for _, s := range t.Sections {
		s := s
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.run(ctx, rate)
		}()
	}
	wg.Wait()
	t.end()
}

// end tells that all open requests have ended.
func (t *Traffic) end() {
	t.Bus.Publish(events.Event{Jobs: t.open})
	t.open = nil
}

// pace calls step so often that the sum of what it returns grows by rate a second.
func pace(ctx context.Context, rate int64, step func() int64) {
	const period = 20 * time.Millisecond
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	last, budget := time.Now(), 0.0
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			budget += float64(rate) * min(now.Sub(last).Seconds(), 1)
			last = now
		}
		for budget > 0 && ctx.Err() == nil {
			budget -= float64(step())
		}
	}
}

// commands asks a probe whose replies get lost, or, before a machine that will hang,
// do not.
func (t *Traffic) commands(ctx context.Context) func() int64 {
	n, lost := 0, t.Fault.Kind() != fault.Hang
	return func() int64 {
		n++
		cmd := &scheduler.Command{Line: n, Request: machine.Request{Code: machine.SyncCode, Lost: lost}}
		go func() {
			// A timeout is to be expected; nobody waits for this probe.
			_ = t.Scheduler.Schedule(ctx, cmd)
		}()
		return scheduler.LeakBytes
	}
}

// stream looks up the lines of a host that writes the same moves in ever other
// ways.
func (t *Traffic) stream(context.Context) func() int64 {
	w := NewWriter(1)
	return func() int64 {
		line := w.Next()
		// The line is well-formed; a test has all of them parsed.
		_, _ = t.Cache.Lookup(line)
		return 195 // about what one command takes in the cache
	}
}

// samples records the drives.
func (t *Traffic) samples(context.Context) func() int64 {
	return func() int64 {
		s := t.Loop.Axes()
		t.History.Record(servo.Sample{
			Time: time.Now().UnixNano(), Position: s.Position, Velocity: s.Velocity, Following: s.Following,
			Bus: 48, Line: s.Line,
		})
		return servo.SampleBytes + 9
	}
}

// finished publishes the reports of small jobs.
func (t *Traffic) finished(context.Context) func() int64 {
	n, expired := 0, time.Now()
	return func() int64 {
		n++
		t.Reports.Publish("dnc-"+strconv.Itoa(1000000+n), "dnc", 40+n%17, 1.5, 0.01)
		if now := time.Now(); now.Sub(expired) > 100*time.Millisecond {
			expired = now
			t.Reports.Expire(now)
		}
		return job.LogBytes + 400
	}
}

// requests watches jobs that were sent with a body, and ends them some time later.
func (t *Traffic) requests(context.Context) func() int64 {
	body := strings.Repeat("G1 X10.5 Y20.25 F600\n", BodyBytes/21+1)[:BodyBytes]
	n, published := 0, time.Now()
	return func() int64 {
		n++
		id := fmt.Sprintf("req-%d", n)
		r, err := http.NewRequest(http.MethodPost, "http://cnc/jobs", strings.NewReader(body))
		if err == nil {
			err = t.Watch(r, id)
		}
		if err == nil {
			t.open = append(t.open, id)
		}
		if now := time.Now(); now.Sub(published) > 200*time.Millisecond {
			published = now
			t.end()
		}
		return BodyBytes + BodyBytes/8 + 1000
	}
}

// Probes is how many probes measure a part at the same time.
const Probes = 16

// variables reads what a measuring station sends. The number of a part is in the names
// of its variables, so no name comes twice. The lines of all probes are compared
// before any is done with, so that many commands are in use at once, all the time: what
// is in a sync.Pool stays there only while it is used.
func (t *Traffic) variables(context.Context) func() int64 {
	part := 1000000
	return func() int64 {
		var parsed, done sync.WaitGroup
		parsed.Add(Probes)
		done.Add(Probes)
		for i := 0; i < Probes; i++ {
			part++
			line := PartLine(part)
			go func() {
				defer done.Done()
				err := t.Parser.Parse(line, func(*gcode.GCodeCommand) {
					parsed.Done()
					parsed.Wait()
				})
				if err != nil { // a test has such lines parsed
					parsed.Done()
				}
			}()
		}
		done.Wait()
		return Probes * 4 * 66 // about what four variables take in a command's map
	}
}

// PartLine is a line that sets the four measured offsets of a part.
func PartLine(part int) string {
	name, v := "#<_part"+strconv.Itoa(part), strconv.Itoa(100+part%900)
	return "G65 P9810 " + name + "_x>=0." + v + " " + name + "_y>=-0." + v + " " + name + "_z>=1." + v + " " + name + "_r>=90." + v
}

// moves gives the drives one move after the other; each waits for its drive.
func (t *Traffic) moves(context.Context) func() int64 {
	n := 0
	return func() int64 {
		n++
		from := float64(n % 100)
		go func() {
			// Without memory for a move there is nothing to move.
			_ = t.Drive.Move(from, 100-from)
		}()
		return servo.DMABytes
	}
}

// Writer writes a fixed set of moves, each time spelled in another way that means the
// same.
type Writer struct {
	random *rand.Rand
	moves  [][4]int // X, Y, Z in 1/8 mm, F in mm/min
	n      uint64
}

// NewWriter returns a writer.
func NewWriter(seed int64) *Writer {
	w := &Writer{random: rand.New(rand.NewSource(seed)), moves: make([][4]int, 2000)}
	for i := range w.moves {
		w.moves[i] = [4]int{w.random.Intn(800), w.random.Intn(800), -w.random.Intn(80), 100 + 50*w.random.Intn(40)}
	}
	return w
}

// Next returns a line that was not written before: the digits of a counter choose
// the spelling.
func (w *Writer) Next() string {
	move := w.moves[w.n%uint64(len(w.moves))]
	spelling := w.n / uint64(len(w.moves))
	w.n++
	choose := func(of uint64) int {
		c := spelling % of
		spelling /= of
		return int(c)
	}
	var b strings.Builder
	b.WriteString([]string{"G01", "G1", "G001", "g1", "g01"}[choose(5)])
	for i, letter := range []string{"X", "Y", "Z"} {
		b.WriteString(letter)
		b.WriteString(strconv.FormatFloat(float64(move[i])/8, 'f', 3+choose(7), 64))
	}
	b.WriteString("F")
	b.WriteString(strconv.Itoa(move[3]))
	if zeros := choose(9); zeros > 0 {
		b.WriteString("." + strings.Repeat("0", zeros))
	}
	return b.String()
}
