package memtrace

import (
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A scope is what a Tag began: the labels to go back to, and the tag.
type scope struct {
	before unsafe.Pointer
	tag    *tag
}

// openScopes are the scopes of one goroutine, the innermost last.
type openScopes struct {
	scopes []scope
	fence  int  // scopes below belong to the callers of a Do
	over   int  // scopes beyond maxDepth, which were not begun
	last   *tag // the newest
}

// scopeBucket holds the scopes of some goroutines. Only the owner of a slot touches what is
// in it; marks are for whoever looks from outside.
type scopeBucket struct {
	owners [8]atomic.Uint64       // goroutine, 0 for none; from useBit on, a count of uses
	outer  [8]atomic.Pointer[tag] // the tag of the outermost scope
	slots  [8]openScopes
}

// useBit is where the count of uses begins in the word of an owner: addresses of user
// space are shorter.
const useBit = 48

func ownerOf(word uint64) uintptr { return uintptr(word & (1<<useBit - 1)) }

// maxDepth bounds the scopes of a goroutine: deeper means that they are never closed.
const maxDepth = 1000

var (
	buckets [512]scopeBucket
	// crowd takes those whose bucket is full.
	crowd struct {
		sync.Mutex
		slots map[uintptr]*openScopes
		some  atomic.Bool
	}
	misuse misuses
)

func bucketOf(g uintptr) *scopeBucket {
	return &buckets[uint64(g)*0x9e3779b97f4a7c15>>32%uint64(len(buckets))]
}

// find returns the scopes of a goroutine, nil where it has none, and its place in
// the bucket, -1 in the crowd.
func find(g uintptr) (*openScopes, int) {
	b := bucketOf(g)
	for i := range b.owners {
		if ownerOf(b.owners[i].Load()) == g {
			return &b.slots[i], i
		}
	}
	if crowd.some.Load() {
		crowd.Lock()
		defer crowd.Unlock()
		return crowd.slots[g], -1
	}
	return nil, -1
}

// claim is find that makes room where there is none.
func claim(g uintptr) (*openScopes, int) {
	b := bucketOf(g)
	free := len(b.owners)
	for i := range b.owners {
		switch ownerOf(b.owners[i].Load()) {
		case g:
			return &b.slots[i], i
		case 0:
			free = min(free, i)
		}
	}
	if crowd.some.Load() {
		if s, i := find(g); s != nil {
			return s, i
		}
	}
	for i := free; i < len(b.owners); i++ {
		word := b.owners[i].Load()
		if ownerOf(word) == 0 && b.owners[i].CompareAndSwap(word, word+1<<useBit|uint64(g)) {
			return &b.slots[i], i
		}
	}
	crowd.Lock()
	defer crowd.Unlock()
	if crowd.slots == nil {
		crowd.slots = make(map[uintptr]*openScopes)
	}
	s := new(openScopes)
	crowd.slots[g] = s
	crowd.some.Store(true)
	return s, -1
}

func release(g uintptr, at int) {
	if at >= 0 {
		owner := &bucketOf(g).owners[at]
		owner.Store(owner.Load() >> useBit << useBit)
		return
	}
	crowd.Lock()
	defer crowd.Unlock()
	delete(crowd.slots, g)
	crowd.some.Store(len(crowd.slots) > 0)
}

// openScope returns the tag of the scope that it began, nil where there was no room.
func openScope(g uintptr, name string, before unsafe.Pointer) *tag {
	open, at := claim(g)
	if len(open.scopes) >= maxDepth {
		misuse.note(&misuse.tooDeep)
		open.over++
		return nil
	}
	// Loops use one tag over and over: it is known, and reading is cheaper than writing.
	t := open.last
	if t == nil || t.name != name {
		t = lookup(name)
		open.last = t
	}
	if at >= 0 && len(open.scopes) == 0 {
		if outer := &bucketOf(g).outer[at]; outer.Load() != t {
			outer.Store(t)
		}
	}
	open.scopes = append(open.scopes, scope{before, t})
	return t
}

func closeScope(g uintptr) (scope, bool) {
	open, at := find(g)
	if open != nil && open.over > 0 {
		open.over--
		return scope{}, false
	}
	if open == nil || len(open.scopes) <= open.fence {
		misuse.note(&misuse.foreign)
		return scope{}, false
	}
	last := len(open.scopes) - 1
	s := open.scopes[last]
	open.scopes[last] = scope{}
	open.scopes = open.scopes[:last]
	if last == 0 {
		release(g, at)
	}
	return s, true
}

// raiseFence makes the scopes open so far out of reach, and returns what lowerFence
// needs to undo that.
func raiseFence(g uintptr) int {
	open, _ := find(g)
	if open == nil {
		return 0
	}
	fence := open.fence
	open.fence = len(open.scopes)
	return fence
}

// lowerFence ends what a Do began: scopes that were begun in it and are still open
// are closed and noted.
func lowerFence(g uintptr, fence int) {
	open, at := find(g)
	if open == nil {
		return
	}
	open.over = 0
	left := open.scopes[min(open.fence, len(open.scopes)):]
	for i := range left {
		misuse.note(&misuse.unclosed)
		left[i] = scope{}
	}
	open.scopes = open.scopes[:len(open.scopes)-len(left)]
	open.fence = fence
	if len(open.scopes) == 0 {
		release(g, at)
	}
}

// misuses counts what was done wrong with scopes, and remembers one place each.
type misuses struct {
	foreign, unclosed, tooDeep mistake
}

type mistake struct {
	count atomic.Int64
	told  atomic.Int64 // of count, by tracers
	place atomic.Pointer[string]
}

func (m *misuses) note(what *mistake) {
	// The first place since the last report is enough, and the rest is cheap.
	if what.count.Add(1); what.place.Load() == nil {
		place := ownCaller()
		what.place.CompareAndSwap(nil, &place)
	}
}

// ownCaller names the function that called into this package, with file and line.
func ownCaller() string {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		frame, more := frames.Next()
		if !isInternal(frame) {
			return where(frame.Function, frame.File, frame.Line)
		}
		if !more {
			return "?"
		}
	}
}

// isInternal reports whether a frame belongs to the making of scopes.
func isInternal(f runtime.Frame) bool {
	switch filepath.Base(f.File) {
	case "scopes.go", "tag.go", "frames.go":
		return isOurs(f.Function)
	}
	return false
}

// take returns how often something happened since the last take, and one place.
func (m *mistake) take() (int64, string) {
	count := m.count.Load()
	n := count - m.told.Swap(count)
	place := m.place.Swap(nil)
	if place == nil {
		return n, "?"
	}
	return n, *place
}

// report calls say for each kind of mistake made since the last report.
func (m *misuses) report(say func(string)) {
	if n, place := m.foreign.take(); n > 0 {
		say(fmt.Sprintf("%d × Untag without a Tag in the same goroutine, first in %s", n, place))
	}
	if n, place := m.unclosed.take(); n > 0 {
		say(fmt.Sprintf("%d × Tag without Untag at the end of a Do, first in %s", n, place))
	}
	if n, place := m.tooDeep.take(); n > 0 {
		say(fmt.Sprintf("%d × Tag ignored in a goroutine with %d open scopes, first in %s", n, maxDepth, place))
	}
}

// watchedScope is a slot in one of its uses, as the tracer saw it.
type watchedScope struct {
	word  uint64
	since int64 // when it was first seen, Unix nanoseconds
	told  bool
}

// neverClosed calls say, once, for each scope that has been seen open for limit
// nanoseconds. What was seen so far is kept in seen.
func neverClosed(now, limit int64, seen map[*atomic.Uint64]watchedScope, say func(name string, age int64)) {
	for i := range buckets {
		b := &buckets[i]
		for j := range b.owners {
			owner := &b.owners[j]
			word := owner.Load()
			scope, known := seen[owner]
			switch {
			case ownerOf(word) == 0:
				if known {
					delete(seen, owner)
				}
				continue
			case scope.word != word:
				scope = watchedScope{word: word, since: now}
			case !scope.told && now-scope.since >= limit:
				// The slot may be given on while its tag is read.
				if t := b.outer[j].Load(); t != nil && owner.Load() == word {
					scope.told = true
					say(t.name, now-scope.since)
				}
			}
			seen[owner] = scope
		}
	}
}
