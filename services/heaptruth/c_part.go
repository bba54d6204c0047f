//go:build cgo_part

package main

// #include <stdlib.h>
// #include <string.h>
// static void *take(size_t n) { void *p = malloc(n); if (p) memset(p, 7, n); return p; }
import "C"

import "unsafe"

var held unsafe.Pointer

// takeC holds n bytes that the Go runtime knows nothing of.
func takeC(n int) int {
	held = C.take(C.size_t(n))
	return n
}
