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

func allocate(n int) ([]byte, error) {
	return syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
}

func free(memory []byte) {
	// It cannot fail for what allocate returned.
	_ = syscall.Munmap(memory)
}
