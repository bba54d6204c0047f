//go:build !cgo && !unix

package servo

import "errors"

func nativeBytes(n int) int64 { return int64(n) }

func allocate(int) ([]byte, error) {
	return nil, errors.New("DMA buffers need cgo on this system")
}

func free([]byte) {}
