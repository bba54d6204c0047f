package memtrace

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// label returns the tag that profiles show for the calling goroutine.
func label() string {
	tag := ""
	readLabels(getLabels(), func(key, value string) {
		if key == labelKey {
			tag = value
		}
	})
	return tag
}

// stackTag returns the tag that the frames of the calling goroutine spell.
func stackTag() string {
	var s site
	runtime.Callers(1, s.stack[:])
	_, tag := s.culprit()
	return tag
}

func TestLabelsAreReadable(t *testing.T) {
	if !labelsReadable {
		t.Fatalf("%s lays label sets out in a way not known here", runtime.Version())
	}
}

func TestTagsNest(t *testing.T) {
	expect := func(want string) {
		t.Helper()
		if got := label(); got != want {
			t.Errorf("tag %q, not %q", got, want)
		}
	}
	expect("")
	Tag("outer")
	expect("outer")
	Tag("inner")
	expect("inner")
	Untag()
	expect("outer")
	Do(context.Background(), "done", func(context.Context) {
		expect("done")
		if got := stackTag(); got != "done" {
			t.Errorf("the frames spell %q", got)
		}
		Untag() // may not end a scope of the caller
		expect("done")
		Do(context.Background(), "deeper", func(context.Context) {
			if got := stackTag(); got != "deeper" {
				t.Errorf("the frames spell %q", got)
			}
		})
		expect("done")
		Tag("left open")
	})
	expect("outer")
	Untag()
	expect("")
	if n, place := misuse.foreign.take(); n != 1 || !strings.Contains(place, "TestTagsNest.func") {
		t.Errorf("%d foreign ends noted, at %s", n, place)
	}
	if n, _ := misuse.unclosed.take(); n != 1 {
		t.Errorf("%d unclosed scopes noted", n)
	}
}

func TestLabelsOfTheServiceStay(t *testing.T) {
	all := func() map[string]string {
		found := map[string]string{}
		readLabels(getLabels(), func(k, v string) { found[k] = v })
		return found
	}
	pprof.Do(context.Background(), pprof.Labels("request", "7"), func(ctx context.Context) {
		Tag("a")
		if got := fmt.Sprint(all()); got != "map[request:7 tag:a]" {
			t.Error(got)
		}
		Do(ctx, "b", func(context.Context) {
			if got := fmt.Sprint(all()); got != "map[request:7 tag:b]" {
				t.Error(got)
			}
		})
		Untag()
		if got := fmt.Sprint(all()); got != "map[request:7]" {
			t.Error(got)
		}
	})
}

func TestScopesEndInTheirGoroutine(t *testing.T) {
	Tag("mine")
	defer Untag()
	done := make(chan string)
	go func() {
		before := label() // inherited
		Untag()
		done <- before + "," + label()
	}()
	if got := <-done; got != "mine,mine" {
		t.Errorf("the other goroutine saw %s", got)
	}
	if n, _ := misuse.foreign.take(); n != 1 {
		t.Errorf("%d noted", n)
	}
	if label() != "mine" {
		t.Error("the scope of this goroutine was ended by another")
	}
}

func TestPanicsAndGoexitLeaveNoTag(t *testing.T) {
	func() {
		defer func() { _ = recover() }()
		Do(context.Background(), "panics", func(context.Context) { panic("on purpose") })
	}()
	if label() != "" {
		t.Error("a tag is left after a panic")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Do(context.Background(), "exits", func(context.Context) { runtime.Goexit() })
	}()
	<-done
	if n := lookup("exits").open.Load(); n != 0 {
		t.Errorf("%d scopes open after Goexit", n)
	}
}

// Jobs run side by side, each under its own tags, nest and yield at random; none may
// ever see a tag that is not its own. A million scopes, also under the race detector.
func TestNoTagLeaksIntoAnotherJob(t *testing.T) {
	const jobs = 200
	scopes := 1_000_000
	if testing.Short() {
		scopes = 50_000
	}
	names := make([][4]string, jobs)
	for job := range names {
		for level := range names[job] {
			names[job][level] = fmt.Sprintf("G%03d-M%02d", job, level)
		}
	}
	var wg sync.WaitGroup
	for job := range names {
		job := job
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewSource(int64(job)))
			left := scopes / jobs
			var inside func(level int, do string)
			inside = func(level int, do string) {
				for left > 0 && r.Intn(4) > 0 {
					left--
					name := names[job][r.Intn(4)]
					before := label()
					enclosed := func(do string) {
						if label() != name {
							t.Errorf("job %d: label %q in a scope of %q", job, label(), name)
						}
						if r.Intn(64) == 0 {
							runtime.Gosched()
						}
						if level < 6 {
							inside(level+1, do)
						}
						if got := stackTag(); r.Intn(16) == 0 && got != do {
							t.Errorf("job %d: frames spell %q, not %q", job, got, do)
						}
					}
					if r.Intn(2) == 0 {
						Tag(name)
						enclosed(do)
						Untag()
					} else {
						Do(context.Background(), name, func(context.Context) { enclosed(name) })
					}
					if label() != before {
						t.Errorf("job %d: label %q after a scope, %q before", job, label(), before)
					}
				}
			}
			for left > 0 {
				inside(0, "")
			}
		}()
	}
	wg.Wait()
	for i := range buckets {
		for j := range buckets[i].owners {
			if ownerOf(buckets[i].owners[j].Load()) != 0 {
				t.Error("a slot is still taken")
			}
		}
	}
}

// More goroutines with open scopes than there are slots.
func TestACrowdOfScopes(t *testing.T) {
	const many = 6000
	var ready, wg sync.WaitGroup
	gate := make(chan struct{})
	for i := 0; i < many; i++ {
		name := fmt.Sprint("crowd-", i%100)
		ready.Add(1)
		wg.Add(1)
		go func() {
			defer wg.Done()
			Tag(name)
			ready.Done()
			<-gate
			if label() != name {
				t.Errorf("label %q, not %q", label(), name)
			}
			Untag()
			if label() != "" {
				t.Errorf("label %q after the end", label())
			}
		}()
	}
	ready.Wait()
	close(gate)
	wg.Wait()
	if n := len(crowd.slots); n != 0 || crowd.some.Load() {
		t.Errorf("%d left in the crowd", n)
	}
	if n, _ := misuse.foreign.take(); n != 0 {
		t.Errorf("%d foreign ends", n)
	}
}

// Scopes beyond the bound are not begun, and their ends end nothing else.
func TestTooManyScopes(t *testing.T) {
	nest := func(n int) {
		for i := 0; i < n; i++ {
			Tag(fmt.Sprint("level ", i))
		}
		for i := n - 1; i >= 0; i-- {
			if i < maxDepth && label() != fmt.Sprint("level ", i) {
				t.Fatalf("label %q in scope %d", label(), i)
			}
			Untag()
		}
		if label() != "" {
			t.Errorf("label %q at the end", label())
		}
	}
	nest(maxDepth + 3)
	Do(context.Background(), "done", func(context.Context) {
		for i := 0; i < maxDepth+3; i++ {
			Tag("deep")
		}
	})
	if label() != "" {
		t.Errorf("label %q after a Do", label())
	}
	if n, _ := misuse.tooDeep.take(); n != 6 {
		t.Errorf("%d noted as too deep", n)
	}
	misuse.unclosed.take()
	if n, _ := misuse.foreign.take(); n != 0 {
		t.Errorf("%d foreign ends", n)
	}
}

// No tag writes into a log what is not of its line.
func TestTagsAreOneLineOfText(t *testing.T) {
	Do(context.Background(), "x\n[2026] ALLOCATED 9GB @ forged\x1b[31m", func(context.Context) {
		if got := stackTag(); got != "x?[2026] ALLOCATED 9GB @ forged?[31m" || label() != got {
			t.Errorf("%q, label %q", got, label())
		}
	})
}

// A tag gets no frames while the profiler's records take more than the budget.
func TestBudgetOfTags(t *testing.T) {
	defer func(budget uint64) {
		TagBudget = budget
		tags.mu.Lock()
		tags.spent, tags.looked = false, time.Time{}
		tags.mu.Unlock()
	}(TagBudget)
	TagBudget = 0
	tags.mu.Lock()
	tags.looked = time.Time{}
	tags.mu.Unlock()
	Do(context.Background(), "beyond the budget", func(context.Context) {
		if got := stackTag(); got != otherTag || label() != "beyond the budget" {
			t.Errorf("frames spell %q, label %q", got, label())
		}
	})
}

func TestNeverClosedScopesAreReported(t *testing.T) {
	seen := map[*atomic.Uint64]watchedScope{}
	scan := func(now int64) (names []string) {
		neverClosed(now, 100, seen, func(name string, age int64) { names = append(names, fmt.Sprint(name, " ", age)) })
		return names
	}
	if got := scan(1000); got != nil {
		t.Fatal(got)
	}
	Tag("forgotten")
	if got := append(scan(1050), scan(1149)...); got != nil {
		t.Error("too early: ", got)
	}
	if got := fmt.Sprint(scan(1150)); got != "[forgotten 100]" {
		t.Error(got)
	}
	if got := scan(1300); got != nil {
		t.Error("told twice: ", got)
	}
	Untag()
	if got := scan(1400); got != nil {
		t.Error("told of a closed scope: ", got)
	}
}

var keep [][]byte

//go:noinline
func hold(n int) {
	for i := 0; i < n; i++ {
		keep = append(keep, make([]byte, 64<<10))
	}
}

// The heap profile tells what each tag holds, as `go tool pprof -tags` reads it.
func TestHeapProfileCarriesTags(t *testing.T) {
	defer func() { keep = nil }()
	for _, job := range []struct {
		name string
		n    int
	}{{"G001-M17", 400}, {"G002-M03", 100}} {
		Do(context.Background(), job.name, func(context.Context) { hold(job.n) })
	}
	for i := 0; i < 3; i++ {
		runtime.GC()
	}
	file := filepath.Join(t.TempDir(), "heap.pb.gz")
	var b bytes.Buffer
	if err := WriteHeapProfile(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	tool := func(args ...string) string {
		out, err := exec.Command(filepath.Join(runtime.GOROOT(), "bin", "go"), append(append([]string{"tool", "pprof"}, args...), file)...).CombinedOutput()
		if err != nil {
			t.Skipf("no go tool pprof here: %v\n%s", err, out)
		}
		return string(out)
	}
	tags := tool("-tags")
	if !strings.Contains(tags, "G001-M17") || !strings.Contains(tags, "G002-M03") {
		t.Errorf("tags missing:\n%s", tags)
	}
	top := tool("-top", "-sample_index=inuse_space", "-tagfocus=tag=G001-M17")
	if !strings.Contains(top, "memtrace.hold") || strings.Contains(top, "tagHi") {
		t.Errorf("the focus on a tag:\n%s", top)
	}
	// 25 MB and 6.25 MB, sampled once in 512 KiB: ± 15 % and 30 %.
	held := heldByTag(t)
	if a, b := held["G001-M17"], held["G002-M03"]; a < 8e6 || a > 48e6 || b < 1e6 || b > 16e6 {
		t.Errorf("held: %v", held)
	}
}

// heldByTag reads in-use bytes per tag from the runtime's profile.
func heldByTag(t *testing.T) map[string]float64 {
	t.Helper()
	records := make([]runtime.MemProfileRecord, 10_000)
	n, ok := runtime.MemProfile(records, false)
	if !ok {
		t.Fatal("too many records")
	}
	held := map[string]float64{}
	for i := range records[:n] {
		r := &records[i]
		s := site{stack: r.Stack0}
		if _, tag := s.culprit(); tag != "" {
			held[tag] += float64(r.InUseBytes()) / sampledShare(float64(r.AllocBytes)/float64(r.AllocObjects))
		}
	}
	return held
}

// Numbers are given again only when their tag is over and holds nothing.
func TestNumbersComeBack(t *testing.T) {
	defer func() { keep = nil }()
	Do(context.Background(), "holds memory", func(context.Context) { hold(200) })
	open := make(chan struct{})
	started := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Do(context.Background(), "still open", func(context.Context) { close(started); <-open })
	}()
	<-started
	defer func() {
		close(open)
		<-ended
		forgetTags()
	}()

	name := func(i int) string { return fmt.Sprint("transaction ", i) }
	for i := 0; i <= maxID; i++ {
		Do(context.Background(), name(i), func(context.Context) {})
	}
	if tags.others.Load() == 0 {
		t.Fatal("there were numbers for all")
	}
	// A finalizer counts collections: let it.
	for deadline := time.Now().Add(20 * time.Second); ; {
		runtime.GC()
		time.Sleep(time.Millisecond)
		tags.mu.Lock()
		tags.searched = time.Time{}
		tags.mu.Unlock()
		fresh := fmt.Sprint("fresh ", time.Now().UnixNano())
		got := ""
		Do(context.Background(), fresh, func(context.Context) { got = stackTag() })
		if got == fresh {
			break
		}
		if got != otherTag {
			t.Fatalf("frames spell %q", got)
		}
		if time.Now().After(deadline) {
			t.Fatal("no number was given again")
		}
	}
	names, _ := tagNames()
	all := fmt.Sprint(names)
	for _, name := range []string{"holds memory", "still open"} {
		if !strings.Contains(all, name) {
			t.Errorf("the tag %q, in use, lost its number; held: %v", name, heldByTag(t))
		}
	}
	if len(names) > maxID {
		t.Errorf("%d names", len(names))
	}
}

// forgetTags frees all numbers, for the tests that follow.
func forgetTags() {
	tags.mu.Lock()
	defer tags.mu.Unlock()
	tags.byID, tags.free, tags.used = [maxID + 1]*tag{}, nil, 0
	rebuild()
}

func TestHostileNames(t *testing.T) {
	for _, name := range []string{"", strings.Repeat("x", 1<<20), "\xff\xfe", "a\nb", "\x00"} {
		Tag(name)
		Do(context.Background(), name, func(context.Context) {
			if got := stackTag(); len(got) > maxNameLen+8 {
				t.Errorf("%d bytes", len(got))
			}
		})
		Untag()
	}
}

func BenchmarkTag(b *testing.B) {
	b.ReportAllocs()
	for i := 0; i < b.N; i++ {
		Tag("G001-M17")
		Untag()
	}
}

func BenchmarkTagNested(b *testing.B) {
	Tag("outer")
	defer Untag()
	b.ReportAllocs()
	for i := 0; i < b.N; i++ {
		Tag("G001-M17")
		Untag()
	}
}

func BenchmarkDo(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f := func(context.Context) {}
	b.ReportAllocs()
	for i := 0; i < b.N; i++ {
		Do(ctx, "G001-M17", f)
	}
}

func BenchmarkPprofDo(b *testing.B) { // for comparison
	ctx := context.Background()
	f := func(context.Context) {}
	b.ReportAllocs()
	for i := 0; i < b.N; i++ {
		pprof.Do(ctx, pprof.Labels("tag", "G001-M17"), f)
	}
}
