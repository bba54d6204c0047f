//go:build amd64 || arm64

package memtrace

// getg returns the address of the calling goroutine's descriptor: while the goroutine
// lives, no other has the same.
func getg() uintptr
