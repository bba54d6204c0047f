// Package fault switches one memory leak on and keeps the books about it.
//
// Each leak is the absence of a fix at the place where the fix belongs: that code
// asks Active and, when it is, does what an unfixed program would do. Whoever
// leaks reports the heap bytes, rounded to size classes, so that a test can hold a
// finding of a leak detector against the truth.
//
// A fault with its fix (WithFix) keeps the situation that the leak needs, such as
// its traffic or a machine that hangs, and never is Active.
package fault

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Kind names a leak.
type Kind string

// The leaks.
const (
	None      Kind = "none"
	Goroutine Kind = "goroutine" // timed-out commands leave their goroutine blocked in machine I/O
	MapKey    Kind = "mapkey"    // the command cache is keyed by the raw line
	Slice     Kind = "slice"     // the position history is never trimmed
	SyncMap   Kind = "syncmap"   // reports of finished jobs are never deleted
	Closure   Kind = "closure"   // listeners that hold their request are never removed
	Pool      Kind = "pool"      // pooled commands are put back with their parameters
	Finalizer Kind = "finalizer" // DMA buffers are left to their finalizer
	Hang      Kind = "hang"      // the machine hangs, and each command leaves its goroutine there
	Tag       Kind = "tag"       // one of many equal sections keeps all programs that it reads
)

// Kinds lists the leaks, without None.
var Kinds = []Kind{Goroutine, MapKey, Slice, SyncMap, Closure, Pool, Finalizer, Hang, Tag}

var blockedCommand = []string{
	"cnc/internal/scheduler.(*Scheduler).Schedule.func1",
	"cnc/internal/scheduler.(*Scheduler).Schedule",
	"cnc/internal/scheduler.newTrace",
	"cnc/internal/machine.(*Machine).Execute",
}

// sites names, for each leak, the application functions on the growing stacks;
// the first is where the growing allocations come from, or their caller in the same
// package.
var sites = map[Kind][]string{
	Goroutine: blockedCommand,
	MapKey: {
		"cnc/internal/gcode.(*Cache).Lookup",
		"cnc/internal/gcode.newCommand",
	},
	Slice: {
		"cnc/internal/servo.(*History).Record",
	},
	SyncMap: {
		"cnc/internal/job.(*Reports).Publish",
		"cnc/internal/job.newReport",
	},
	Closure: {
		"cnc/internal/api.(*Server).watch",
		"cnc/internal/events.(*Bus).Subscribe",
	},
	Pool: {
		"cnc/internal/gcode.(*GCodeCommand).Parse",
		"cnc/internal/gcode.(*Parser).Parse",
	},
	// The buffers themselves are in no heap profile; the small Go objects that own
	// them are.
	Finalizer: {
		"cnc/internal/servo.NewMotionBuffer",
		"cnc/internal/servo.(*MotionBuf).finalize",
		"cnc/internal/servo.(*Drive).Move",
	},
	Hang: blockedCommand,
	// These frames are the same in all sections; only the tag tells which.
	Tag: {
		"cnc/internal/gcode.Parse",
		"cnc/internal/gcode.(*Block).word",
		"cnc/internal/gcode.GName",
		"cnc/internal/gcode.ParseProgram",
		"cnc/internal/load.(*Section).keep",
	},
}

// ParseKind reads the name of a leak.
func ParseKind(s string) (Kind, error) {
	if Kind(s) == None {
		return None, nil
	}
	for _, k := range Kinds {
		if s == string(k) {
			return k, nil
		}
	}
	return None, fmt.Errorf("unknown leak %q (%s)", s, Names())
}

// Names lists what ParseKind reads, for people.
func Names() string {
	names := string(None)
	for _, k := range Kinds {
		names += ", " + string(k)
	}
	return names
}

// ParseBytes reads a size such as 4096, 512KB or 2MB; units are powers of 1024.
func ParseBytes(s string) (int64, error) {
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(strings.TrimSpace(s)), "B"), "I")
	unit := 1.0
	if n := len(number); n > 0 {
		if i := strings.IndexByte("KMG", number[n-1]); i >= 0 {
			unit = math.Exp2(float64(10 * (i + 1)))
			number = number[:n-1]
		}
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || v <= 0 || math.IsInf(v, 0) || v*unit > 1<<40 {
		return 0, fmt.Errorf("bad size %q (examples: 4096, 512KB, 2MB)", s)
	}
	return int64(v * unit), nil
}

// Fault is at most one leak of the process. A nil Fault never leaks.
type Fault struct {
	kind  Kind
	after time.Duration
	rate  int64
	fixed bool

	begun   atomic.Bool
	bytes   atomic.Int64
	objects atomic.Int64

	mu      sync.Mutex
	since   time.Time
	hot     string
	tag     string
	onset   func()       // makes the situation
	backing func() int64 // bytes of the leaking container itself
	healthy int64        // the same when the fault began
}

// New makes a fault that becomes active `after` its Arm, with traffic of `rate`
// bytes a second.
func New(kind Kind, after time.Duration, rate int64) *Fault {
	return &Fault{kind: kind, after: after, rate: rate}
}

// WithFix puts the fix in place. It must be called before the fault is used.
func (f *Fault) WithFix() *Fault {
	f.fixed = true
	return f
}

// Kind returns the leak that was asked for.
func (f *Fault) Kind() Kind {
	if f == nil {
		return None
	}
	return f.kind
}

// Rate returns the wanted rate in bytes a second.
func (f *Fault) Rate() int64 {
	if f == nil {
		return 0
	}
	return f.rate
}

// SetBacking tells how large the container of a leak is.
func (f *Fault) SetBacking(k Kind, bytes func() int64) {
	if f == nil || f.kind != k {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.backing = bytes
}

// SetOnset tells what happens, with and without the fix, when the fault k begins.
func (f *Fault) SetOnset(k Kind, happens func()) {
	if f == nil || f.kind != k {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onset = happens
}

// SetHot names a function that allocates much and leaks nothing.
func (f *Fault) SetHot(function string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hot = function
}

// SetTag names the tag under which the fault Tag leaks.
func (f *Fault) SetTag(tag string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tag = tag
}

// Arm waits and then switches the fault on; it returns when that is done or ctx
// ends.
func (f *Fault) Arm(ctx context.Context) {
	if f.Kind() == None {
		return
	}
	timer := time.NewTimer(f.after)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
		f.begin()
	}
}

func (f *Fault) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.backing != nil {
		f.healthy = f.backing()
	}
	f.since = time.Now()
	f.begun.Store(true)
	if f.onset != nil {
		f.onset()
	}
}

// Active reports whether the leak k is on: it has begun and its fix is missing.
func (f *Fault) Active(k Kind) bool {
	return f != nil && f.kind == k && !f.fixed && f.begun.Load()
}

// Leaked adds to the books.
func (f *Fault) Leaked(bytes, objects int64) {
	f.bytes.Add(bytes)
	f.objects.Add(objects)
}

// Truth is what really leaks.
type Truth struct {
	Leak          Kind     `json:"leak"`
	Function      string   `json:"function"`  // where the leak is made
	Functions     []string `json:"functions"` // application functions on the growing stacks
	Fix           bool     `json:"fix"`       // the fix is in place: nothing leaks
	Native        bool     `json:"native"`    // the bytes are outside of Go's heap
	Hot           string   `json:"hot"`       // allocates much, leaks nothing; often empty
	Tag           string   `json:"tag"`       // under which it leaks; mostly empty
	Since         *string  `json:"since"`     // RFC 3339, null before the leak starts
	LeakedBytes   int64    `json:"leaked_bytes"`
	LeakedObjects int64    `json:"leaked_objects"`
	Rate          int64    `json:"rate_bytes_per_sec"`
	PID           int      `json:"pid"`
}

// Truth returns the books.
func (f *Fault) Truth(pid int) Truth {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := Truth{Leak: f.kind, Functions: []string{}, Fix: f.fixed, Hot: f.hot, Rate: f.rate, PID: pid}
	if t.Leak == None {
		t.Rate = 0
		return t
	}
	t.Native = t.Leak == Finalizer
	t.Functions = sites[t.Leak]
	t.Function = t.Functions[0]
	if t.Leak == Tag {
		t.Tag = f.tag
	}
	if f.since.IsZero() {
		return t
	}
	s := f.since.Format(time.RFC3339Nano)
	t.Since = &s
	t.LeakedBytes, t.LeakedObjects = f.bytes.Load(), f.objects.Load()
	if f.backing != nil && !f.fixed { // a healthy container may still be filling
		t.LeakedBytes += f.backing() - f.healthy
	}
	return t
}
