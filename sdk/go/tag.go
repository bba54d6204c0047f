package memtrace

import (
	"context"
	"unsafe"
)

// Tag marks the calling goroutine, until the Untag that belongs to it, as working on
// name: an instruction block, a transaction, a tenant. Goroutine and CPU profiles show
// it as the label "tag", as do the goroutines that are started meanwhile. Scopes nest;
// the innermost counts.
//
//	memtrace.Tag("G001-M17")
//	defer memtrace.Untag()
//
// A pair costs some tens of nanoseconds and, once the name is known, allocates nothing;
// where the goroutine has labels of other origin they are merged, which allocates.
// The heap profile does not see goroutine labels: for that, use [Do].
func Tag(name string) {
	before := getLabels()
	t := openScope(getg(), name, before)
	if t == nil {
		return
	}
	labels := t.labels
	if !onlyTag(before) {
		labels = withTag(before, t.name)
	}
	setLabels(labels)
}

// Untag ends the innermost scope that [Tag] began in this goroutine. Without such a
// scope, or across the border of a [Do], it does nothing; the tracer reports it.
func Untag() {
	if s, ok := closeScope(getg()); ok {
		setLabels(s.before)
	}
}

// Do calls f in the scope of a tag. Besides the label that [Tag] sets, two frames on
// the stack, whose names tell the number of the tag, carry it into every allocation
// sample of f: an ordinary heap profile then tells what each tag holds. `memtrace`
// turns the frames back into labels, and so does [LabelProfile].
//
// The context is handed to f as it is. Goroutines that f starts inherit the label but
// not the frames: call Do in them again. What f allocates more than some 30 calls
// further down loses the frames before Go 1.23 (128 from then on).
//
// At most 4,095 tags have frames of their own at a time. When there are more, those
// whose last scope ended longest ago and that hold no memory any more give theirs to
// new ones; while all of them hold memory, new tags count as "other". Cumulative values
// (alloc_space, alloc_objects) of a number that was given again count for its new tag.
func Do(ctx context.Context, name string, f func(context.Context)) {
	t := enter(name)
	before := getLabels()
	labels := t.labels
	if !onlyTag(before) {
		labels = withTag(before, t.name)
	}
	g := getg()
	fence := raiseFence(g)
	setLabels(labels)
	defer leave(t, before, g, fence)
	id := t.id.Load()
	highFrames[id>>6&63](ctx, f, uint(id))
}

// leave undoes what Do did, also when f panics or ends its goroutine.
func leave(t *tag, before unsafe.Pointer, g uintptr, fence int) {
	lowerFence(g, fence)
	setLabels(before)
	t.exit()
}
