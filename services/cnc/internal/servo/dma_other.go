//go:build !cgo && !unix

package servo

import "errors"

func nativeBytes(n int) int64 { return int64(n) }

// AllocateDMA always fails here.
func AllocateDMA(int) ([]byte, error) {
	return nil, errors.New("DMA buffers need cgo on this system")
}

// FreeDMA has nothing to do.
func FreeDMA([]byte) {}
