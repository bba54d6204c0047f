package memtrace

import (
	"hash/maphash"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unsafe"
)

// A tag is a name that was used for a scope.
type tag struct {
	name   string
	shown  string         // without what a log or a terminal could take for its own
	labels unsafe.Pointer // the label set {tag: name}
	// The number that its frames spell: 0 until Do needs one, and while none is free.
	id      atomic.Uint32
	open    atomic.Int32 // scopes of Do
	ended   atomic.Int64 // collections counted when the last of them ended
	retired atomic.Bool
}

const (
	// maxID is the highest number that two frames can spell; 0 is "other".
	maxID = 64*64 - 1
	// maxNames bounds the names kept; those without a number can go at any time.
	maxNames = 2 * (maxID + 1)
	// maxNameLen cuts longer names, bytes.
	maxNameLen = 128
	// otherTag is shown for tags without frames of their own.
	otherTag = "other"
	// recycleGap is the least time between two searches for numbers to give again.
	recycleGap = 5 * time.Second
	// publishLag is how many collections it takes until a heap profile shows all that
	// was allocated before them: two (runtime/mprof.go), one that was not counted yet
	// when the scope ended, and one whose samples are just being published.
	publishLag = 4
)

var hashSeed = maphash.MakeSeed()

// nameTable is a hash table with linear probing, read without a lock. It is never
// full; names only leave when it is built anew.
type nameTable struct {
	slots [4 * maxNames]atomic.Pointer[tag]
	count int // under tags.mu
}

func (n *nameTable) find(name string) *tag {
	for i := maphash.String(hashSeed, name); ; i++ {
		t := n.slots[i%uint64(len(n.slots))].Load()
		if t == nil || t.name == name {
			return t
		}
	}
}

func (n *nameTable) add(t *tag) {
	i := maphash.String(hashSeed, t.name)
	for n.slots[i%uint64(len(n.slots))].Load() != nil {
		i++
	}
	n.slots[i%uint64(len(n.slots))].Store(t)
	n.count++
}

var tags struct {
	names atomic.Pointer[nameTable]

	mu         sync.Mutex
	byID       [maxID + 1]*tag
	free       []uint16 // numbers given back
	used       uint16   // highest number ever given
	generation uint64
	others     atomic.Int64 // scopes that counted as "other"
	searching  bool
	searched   time.Time
	pause      time.Duration // until the next search
	spent      bool          // the budget, when it was last looked at
	looked     time.Time
}

// TagBudget is how many bytes the records of the runtime's heap profiler may take while
// tags still get frames of their own; each pair of a tag and a sampled stack adds one.
// To be set before the first [Do].
var TagBudget uint64 = 64 << 20

// collections counts garbage collections, from the first use of Do on. It may count
// too few, never too many.
var (
	collections      atomic.Int64
	countCollections sync.Once
)

// lookup returns the tag of that name.
func lookup(name string) *tag {
	if len(name) > maxNameLen {
		name = name[:maxNameLen]
	}
	if names := tags.names.Load(); names != nil {
		if t := names.find(name); t != nil {
			return t
		}
	}
	return newTag(name)
}

func newTag(name string) *tag {
	// Outside of the lock: it allocates, and a memory profiler's hooks may run.
	t := &tag{name: strings.Clone(name)}
	t.shown = printable(t.name)
	t.labels = newLabels(t.shown)

	tags.mu.Lock()
	defer tags.mu.Unlock()
	names := tags.names.Load()
	if names == nil {
		names = new(nameTable)
		tags.names.Store(names)
	}
	if known := names.find(name); known != nil {
		return known
	}
	if names.count >= maxNames {
		names = rebuild()
	}
	names.add(t)
	return t
}

// printable replaces what is not text by question marks.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// rebuild drops the names that have no number. Scopes of theirs that are open go on:
// the goroutine holds the label set.
func rebuild() *nameTable {
	names := new(nameTable)
	for _, t := range tags.byID[:tags.used+1] {
		if t != nil {
			names.add(t)
		}
	}
	tags.names.Store(names)
	return names
}

// enter begins a scope of Do.
func enter(name string) *tag {
	for {
		t := lookup(name)
		t.open.Add(1)
		if t.id.Load() == 0 {
			t.number()
		}
		if !t.retired.Load() {
			return t
		}
		// Its number is being given away.
		t.open.Add(-1)
		runtime.Gosched()
	}
}

func (t *tag) exit() {
	t.ended.Store(collections.Load())
	t.open.Add(-1)
}

// number gives the tag a number of its own, where one is free.
func (t *tag) number() {
	countCollections.Do(func() { onEachCollection(func() { collections.Add(1) }) })
	tags.mu.Lock()
	defer tags.mu.Unlock()
	if t.id.Load() != 0 {
		return
	}
	id := uint16(0)
	if now := time.Now(); now.Sub(tags.looked) >= time.Second {
		tags.looked, tags.spent = now, ReadStats().ProfileBytes > TagBudget
	}
	switch n := len(tags.free); {
	case tags.spent:
		tags.others.Add(1)
		return
	case n > 0:
		id = tags.free[n-1]
		tags.free = tags.free[:n-1]
	case tags.used < maxID:
		tags.used++
		id = tags.used
	default:
		tags.others.Add(1)
		if !tags.searching && time.Since(tags.searched) >= max(tags.pause, recycleGap) {
			tags.searching = true
			go recycle()
		}
		return
	}
	tags.byID[id] = t
	tags.generation++
	t.id.Store(uint32(id))
	// The table may have been rebuilt without it.
	if names := tags.names.Load(); names.find(t.name) == nil {
		names.add(t)
	}
}

// recycle takes the numbers of tags that are over and hold no memory, those that
// ended first before others, at most half of all: what ended a moment ago may well
// come again.
func recycle() {
	began := time.Now()
	// The profile shows what was allocated before this moment, less the lag; a tag used
	// since may hold what it does not show.
	now := collections.Load()
	live, err := liveIDs()
	tags.mu.Lock()
	defer tags.mu.Unlock()
	// With many tags and stacks a search takes long: one part in a hundred of the time.
	tags.searching, tags.searched, tags.pause = false, time.Now(), 100*time.Since(began)
	if err != nil {
		return
	}
	var over []*tag
	for id, t := range tags.byID {
		if t != nil && !live[id] && t.open.Load() == 0 && t.ended.Load()+publishLag <= now {
			over = append(over, t)
		}
	}
	sort.Slice(over, func(i, j int) bool { return over[i].ended.Load() < over[j].ended.Load() })
	if len(over) > maxID/2 {
		over = over[:maxID/2]
	}
	for _, t := range over {
		t.retired.Store(true)
		if t.open.Load() != 0 {
			t.retired.Store(false)
			continue
		}
		id := t.id.Load()
		tags.byID[id] = nil
		tags.free = append(tags.free, uint16(id))
	}
	tags.generation++
	rebuild()
}

// tagName returns the name that two frames spell now.
func tagName(id int) string {
	if id <= 0 || id > maxID {
		return otherTag
	}
	tags.mu.Lock()
	defer tags.mu.Unlock()
	if t := tags.byID[id]; t != nil {
		return t.shown
	}
	return otherTag
}

// tagNames returns all names in force by number, and a number that changes with them.
func tagNames() (map[int]string, uint64) {
	tags.mu.Lock()
	defer tags.mu.Unlock()
	names := make(map[int]string)
	for id, t := range tags.byID[:tags.used+1] {
		if t != nil {
			names[id] = t.shown
		}
	}
	return names, tags.generation
}
