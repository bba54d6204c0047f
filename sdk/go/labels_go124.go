//go:build go1.24

package memtrace

import "unsafe"

// readLabels calls each for every label of a set and returns how many there are.
// From Go 1.24 on a set is a slice of pairs (runtime/pprof/label.go).
func readLabels(labels unsafe.Pointer, each func(key, value string)) int {
	if labels == nil {
		return 0
	}
	pairs := *(*[]struct{ key, value string })(labels)
	if len(pairs) > maxLabels {
		return 0
	}
	for i := range pairs {
		each(pairs[i].key, pairs[i].value)
	}
	return len(pairs)
}
