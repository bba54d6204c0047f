package main

import (
	"bytes"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cnc/internal/fault"
	"cnc/internal/servo"
)

func TestPage(t *testing.T) {
	var page bytes.Buffer
	if err := write(&page, 0.02); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	for _, part := range []string{"## D1", "## D2", "## D3", "## D4", "## D5", runtime.Version()} {
		if !strings.Contains(text, part) {
			t.Errorf("%s is missing", part)
		}
	}
	for _, bad := range []string{"NaN", "Inf", "%!"} {
		if i := strings.Index(text, bad); i >= 0 {
			t.Errorf("%q", text[max(0, i-80):i+len(bad)])
		}
	}
}

func TestTasksAreCounted(t *testing.T) {
	for _, recycle := range []bool{false, true} {
		r, err := startTasks(4, 100, recycle, 300*time.Millisecond)
		if err != nil || len(r.start) < 4 || r.start.quantile(1) < r.start.quantile(0.5) {
			t.Errorf("recycle %v: %d starts, %v", recycle, len(r.start), err)
		}
	}
}

func TestContentionIsSeen(t *testing.T) {
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(1))
	before, err := contention()
	if err != nil {
		t.Fatal(err)
	}
	waited := lockWait()
	var mu sync.Mutex
	// Only some waits are timed, so there must be many.
	for end := time.Now().Add(10 * time.Second); ; {
		var wg sync.WaitGroup
		for i := 0; i < 4; i++ {
			wg.Add(1)
			go func() {
				defer wg.Done()
				mu.Lock()
				time.Sleep(time.Millisecond)
				mu.Unlock()
			}()
		}
		wg.Wait()
		after, err := contention()
		if err != nil {
			t.Fatal(err)
		}
		if after.all > before.all && lockWait() > waited {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("profile: %+v, then %+v; metric: %v s more", before, after, lockWait()-waited)
		}
	}
}

func TestGoroutinesPerMinute(t *testing.T) {
	for _, c := range []struct {
		f         *fault.Fault
		hung      bool
		remaining bool
	}{
		{fault.New(fault.None, 0, 1), false, false},
		{fault.New(fault.Hang, 0, 1), true, true},
		{fault.New(fault.Hang, 0, 1).WithFix(), true, false},
	} {
		perMinute, stats, err := dispatch(c.f, 500*time.Millisecond)
		if err != nil || stats.Scheduled == 0 || stats.TimedOut > 0 != c.hung {
			t.Errorf("%+v, %v", stats, err)
		}
		// All commands of a machine that hangs leave a goroutine, or none does.
		if left := perMinute > 120; left != c.remaining || !left && math.Abs(perMinute) > 1 {
			t.Errorf("hung %v: %.0f goroutines a minute", c.hung, perMinute)
		}
	}
}

func TestPoolVariants(t *testing.T) {
	if raceDetector {
		t.Skip("under the race detector a sync.Pool drops objects at random")
	}
	const lines = 4000
	for i, grows := range []bool{false, false, true} {
		p, err := parsePooled(resets[i].reset, lines)
		if err != nil {
			t.Fatal(err)
		}
		params := 6
		if grows {
			params = 2 + 4*lines
		}
		if p.params != params || grows != (p.full > 100*lines) || p.full > 1000*lines {
			t.Errorf("%s: %+v, want %d parameters", resets[i].name, p, params)
		}
	}
}

func TestKeyers(t *testing.T) {
	lines := corpus(5)
	meanings := make(map[int]bool)
	for _, s := range lines {
		meanings[s.meaning] = true
	}
	found := make(map[string]judged)
	for _, k := range keyers {
		found[k.name] = judge(k, lines, 1000)
	}
	for name, want := range map[string]struct {
		keys, refused int
		right         string
		g100          string
	}{
		"raw line":                         {len(lines), 0, "never wrong, but several keys for each of 2005 commands", "yes"},
		"prefix `[:3]`":                    {9, 0, "**wrong**: one key for several instructions", "**no**"},
		"regex for all words":              {len(meanings), 0, "right", "yes"},
		"hash of the AST node":             {len(meanings) - 2, 4, "right", "refuses both"},
		"normal form (`AppendNormal`)":     {len(meanings) + 3, 0, "never wrong, but several keys for each of 3 commands", "yes"},
		"sorted normal form (`AppendKey`)": {len(meanings), 0, "right", "yes"},
	} {
		j, ok := found[name]
		if !ok || j.keys != want.keys || j.refused != want.refused || j.right() != want.right || j.g100 != want.g100 {
			t.Errorf("%s: %d keys, %d refused, %q, %q; want %+v", name, j.keys, j.refused, j.right(), j.g100, want)
		}
	}
	if j := found["regex for the code `G\\d+`"]; j.commands == 0 || j.codes != 0 || j.g100 != "yes" {
		t.Errorf("regex for the code: %+v", j)
	}
}

func TestReleases(t *testing.T) {
	ways := append([]release{{"close", withClose}, {"finalizer", withFinalizer(0)}}, cleanups...)
	found, _, err := watchReleases(ways, 500*time.Millisecond)
	if err != nil || len(found) != len(ways) {
		t.Fatalf("%d ways, %v", len(found), err)
	}
	if c := found[0]; c.buffers == 0 || c.waiting != 0 {
		t.Errorf("%d of %d wait for Close", c.waiting, c.buffers)
	}
	slow, _, err := watchReleases([]release{{"", withFinalizer(servo.DriveCycle)}}, 500*time.Millisecond)
	if err != nil || slow[0].waiting == 0 {
		t.Errorf("no buffer waits for its finalizer, %v", err)
	}
	// All ways do release.
	r := new(releases)
	for _, way := range ways {
		if err := way.use(r); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		runtime.GC()
		if _, waiting := r.result(); waiting == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a buffer is never released")
		}
	}
}
