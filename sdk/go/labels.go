package memtrace

import (
	"context"
	"runtime/debug"
	"runtime/pprof"
	"unsafe"
)

// Labels of a goroutine are one pointer in its descriptor; goroutine and CPU profiles
// show what it points to, and a new goroutine inherits it. runtime/pprof can only set
// it from a context and cannot read it. The two functions below are what it uses
// itself; the runtime keeps them for packages like this one (go.dev/issue/67401).

//go:linkname setLabels runtime/pprof.runtime_setProfLabel
func setLabels(labels unsafe.Pointer)

//go:linkname getLabels runtime/pprof.runtime_getProfLabel
func getLabels() unsafe.Pointer

// labelKey is the key of the label that carries the tag.
const labelKey = "tag"

// maxLabels is more than any label set holds.
const maxLabels = 1 << 10

// newLabels makes the label set {labels…, tag: name}.
func newLabels(name string, labels ...string) unsafe.Pointer {
	ctx := pprof.WithLabels(context.Background(), pprof.Labels(append(labels, labelKey, name)...))
	before := getLabels()
	pprof.SetGoroutineLabels(ctx)
	made := getLabels()
	setLabels(before)
	return made
}

// labelsReadable says whether a label set is laid out as readLabels expects. Where a
// future runtime changes that, labels that the service set itself are hidden inside
// a tag's scope instead of being merged, and come back after it.
var labelsReadable = func() bool {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { _ = recover() }()
	key, value := "", ""
	n := readLabels(newLabels("value"), func(k, v string) { key, value = k, v })
	return n == 1 && key == labelKey && value == "value"
}()

// onlyTag reports whether the label set holds nothing but a tag.
func onlyTag(labels unsafe.Pointer) bool {
	if labels == nil || !labelsReadable {
		return true
	}
	other := false
	readLabels(labels, func(key, _ string) { other = other || key != labelKey })
	return !other
}

// withTag makes the label set that holds what labels holds, with the tag name.
func withTag(labels unsafe.Pointer, name string) unsafe.Pointer {
	var all []string
	readLabels(labels, func(key, value string) {
		if key != labelKey {
			all = append(all, key, value)
		}
	})
	return newLabels(name, all...)
}
