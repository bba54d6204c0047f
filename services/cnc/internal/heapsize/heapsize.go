// Package heapsize says how many bytes of heap an allocation really takes.
//
// Go rounds allocations up to size classes, and the rules differ between
// releases (since 1.22 larger objects with pointers carry a header). The classes
// are therefore asked of the running runtime: append rounds a slice's capacity
// up to its class.
package heapsize

import "sort"

const (
	maxSmall = 32768
	page     = 8192
)

var (
	classes []int
	header  int // bytes of malloc header on small objects with pointers
)

func init() {
	for n := 1; n <= maxSmall; {
		c := cap(append([]byte(nil), make([]byte, n)...))
		classes = append(classes, c)
		n = c + 1
	}
	if cap(append([]*byte(nil), make([]*byte, 1024/8)...))*8 != noScan(1024) {
		header = 8
	}
}

// noScan rounds up to the size class, or to pages above the largest class.
func noScan(n int) int {
	switch {
	case n == 0:
		return 0
	case n > maxSmall:
		return (n + page - 1) / page * page
	}
	return classes[sort.SearchInts(classes, n)]
}

// NoScan returns the heap bytes of an object of n bytes that has no pointers.
func NoScan(n int) int64 { return int64(noScan(n)) }

// Scan returns the heap bytes of an object of n bytes that has pointers.
func Scan(n int) int64 {
	if n > 512 && n+header <= maxSmall {
		n += header
	}
	return int64(noScan(n))
}
