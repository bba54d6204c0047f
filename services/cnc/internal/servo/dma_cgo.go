//go:build cgo

package servo

// #include <stdlib.h>
import "C"

import "unsafe"

// nativeBytes is what malloc takes for n bytes: glibc adds 8 for the size of the chunk
// and rounds up to 16.
func nativeBytes(n int) int64 { return int64(n+8+15) &^ 15 }

// AllocateDMA returns n bytes outside of Go's heap.
func AllocateDMA(n int) ([]byte, error) {
	// cgo's malloc ends the program where there is no memory, so this is not nil.
	return unsafe.Slice((*byte)(C.malloc(C.size_t(n))), n), nil
}

// FreeDMA gives back what AllocateDMA returned.
func FreeDMA(memory []byte) { C.free(unsafe.Pointer(unsafe.SliceData(memory))) }
