//go:build !go1.24

package memtrace

import "unsafe"

// readLabels calls each for every label of a set and returns how many there are.
// Until Go 1.23 a set is a map (runtime/pprof/label.go).
func readLabels(labels unsafe.Pointer, each func(key, value string)) int {
	if labels == nil {
		return 0
	}
	pairs := *(*map[string]string)(labels)
	for key, value := range pairs {
		each(key, value)
	}
	return len(pairs)
}
