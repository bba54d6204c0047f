//go:build go1.24

package heapsize

import "math"

// Map returns the expected heap bytes of a map's tables after n insertions.
//
// Since Go 1.24 a large map is a directory of tables of at most 1024 slots in
// groups of eight. A table that is 7/8 full is split in two, so their number
// depends on how keys hash; this is its expectation for a good hash: the loads
// of the 2^d tables of depth d are close to normal with mean and variance n/2^d.
func Map(n, keySize, elemSize int) int64 {
	const slots, full = 1024, 896
	group := 8 + 8*(keySize+elemSize)
	if n <= 8 {
		return Scan(group)
	}
	if n <= full {
		capacity := 16
		for capacity*7/8 < n {
			capacity *= 2
		}
		return Scan(capacity/8*group) + Scan(40)
	}
	tables, depth := 1.0, 0
	for d := 0; ; d++ {
		mean := float64(n) / math.Exp2(float64(d))
		split := 0.5 * math.Erfc((full+0.5-mean)/math.Sqrt(2*mean))
		if split < 1e-9 {
			break
		}
		tables += math.Exp2(float64(d)) * split
		if math.Exp2(float64(d))*split > 0.5 {
			depth = d + 1
		}
	}
	directory := Scan(8 << depth)
	return int64(tables*float64(Scan(slots/8*group)+Scan(40))) + directory
}
