//go:build !cgo && unix

package servo

import (
	"os"
	"syscall"
)

// nativeBytes is what a mapping of n bytes takes: whole pages.
func nativeBytes(n int) int64 {
	page := int64(os.Getpagesize())
	return (int64(n) + page - 1) / page * page
}

// AllocateDMA returns n bytes outside of Go's heap.
func AllocateDMA(n int) ([]byte, error) {
	return syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
}

// FreeDMA gives back what AllocateDMA returned.
func FreeDMA(memory []byte) {
	// It cannot fail for what AllocateDMA returned.
	_ = syscall.Munmap(memory)
}
