package main

import (
	"runtime"
	"testing"
)

// What each structure says of itself is what the allocator has after it was built.
func TestTruthIsWhatTheAllocatorHas(t *testing.T) {
	quiet()
	// The first finalizer starts a goroutine.
	finalize(&Handle{})
	settled()
	needed := map[string]tally{"main.Needed": {}, "main.Leaf": {}}
	builds := map[string]func(int) *structure{
		"list": buildList, "tree": buildTree, "by name": buildByName, "by number": buildByNumber,
		"emptied": buildEmptied, "grid": buildGrid, "ring": buildRing, "queue": buildQueue, "ticks": buildTicks,
		"counters": buildCounters, "inner": buildInner, "big": buildBig, "texts": buildTexts, "blobs": buildBlobs,
		"handles": buildHandles,
		"closers": func(scale int) *structure {
			s := buildClosers(scale, needed)
			for _, more := range needed {
				s.Objects += more.Objects
				s.Retained += more.Bytes
			}
			return s
		},
		"owners": func(scale int) *structure {
			own, shared := buildOwners(scale)
			s := own[0]
			s.Objects += own[1].Objects + shared["main.Shared"].Objects
			s.Retained += own[1].Retained + shared["main.Shared"].Bytes
			return s
		},
	}
	for name, build := range builds {
		for _, scale := range []int{1, 3} {
			var says tally
			drop()
			has := live(func() {
				s := build(scale)
				says = tally{s.Objects, s.Retained}
			})
			if has != says {
				t.Errorf("%s at scale %d: says %v, and the allocator has %v", name, scale, says, has)
			}
		}
	}
}

// drop lets go of what an earlier round built.
func drop() {
	list, tree, byName, byNumber, emptied, grid, ring, queue, ticks = nil, nil, nil, nil, nil, nil, nil, nil, nil
	counters, inner, big, texts, blobs, left, right, handles, closers = nil, nil, nil, nil, nil, nil, nil, nil, nil
}

// A pool takes what its twins took.
func TestPool(t *testing.T) {
	quiet()
	s := buildPool()
	takes := allocated(func() { fillPool(&pool) })
	if takes != s.Types["sync.Pool"] {
		t.Errorf("says %v, and took %v", s.Types["sync.Pool"], takes)
	}
	if takes.Objects == 0 {
		t.Error("a pool that takes nothing was measured wrongly")
	}
}

// Sizes are those of the runtime's own table of size classes.
func TestSizesAreClasses(t *testing.T) {
	quiet()
	runtime.ReadMemStats(&stats)
	classes := map[uint64]bool{}
	for _, class := range stats.BySize {
		classes[uint64(class.Size)] = true
	}
	for name, size := range map[string]uint64{
		"Node": sizeOf[Node](), "Branch": sizeOf[Branch](), "Block": sizeOf[Block](), "Wide": sizeOf[Wide](),
		"Dense": sizeOf[Dense](), "string of 33": sizeOfArray[byte](33),
	} {
		if !classes[size] {
			t.Errorf("%s takes %d, which is no size class", name, size)
		}
	}
	if size := sizeOf[Vast](); size%8192 != 0 || size < 40000 || size > 49152 {
		t.Errorf("Vast takes %d", size)
	}
}

// Each goroutine waits in the state that its name says, and they are told apart.
func TestGoroutines(t *testing.T) {
	quiet()
	all, held := buildGoroutines(1)
	leaked := 0
	for _, g := range all {
		if g.State == "" || g.ID == 0 {
			t.Errorf("%+v", g)
		}
		if g.Leaked {
			leaked++
		}
	}
	if leaked != 10 || held == nil || held.Objects != 80 {
		t.Errorf("%d leaked, held %+v", leaked, held)
	}
}
