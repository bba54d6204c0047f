//go:build !amd64 && !arm64

package memtrace

import (
	"bytes"
	"runtime"
	"strconv"
)

// getg returns the number of the calling goroutine, read from its stack trace
// ("goroutine 18 [running]: …"): about a microsecond.
func getg() uintptr {
	var head [32]byte
	words := bytes.Fields(head[:runtime.Stack(head[:], false)])
	if len(words) < 2 {
		return 1
	}
	n, err := strconv.ParseUint(string(words[1]), 10, 0)
	if err != nil {
		return 1
	}
	return uintptr(n)
}
