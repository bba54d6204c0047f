//go:build !go1.24

package heapsize

import "math"

// Map returns the expected heap bytes of a map's buckets after n insertions.
//
// Before Go 1.24 a map is an array of 2^B buckets of eight slots that doubles
// when it holds more than maxLoad keys a bucket on average; each insertion then moves
// up to two old buckets, and the old array stays until the last has moved.
// Overflow buckets are expected as for a good hash; the first 1/16 are part of
// the array.
func Map(n, keySize, elemSize int) int64 {
	bucket := 8 + 8*(keySize+elemSize) + 8
	if n <= 8 {
		return Scan(bucket)
	}
	b := 0
	for float64(n) > maxLoad*math.Exp2(float64(b)) {
		b++
	}
	total := buckets(n, b, bucket)
	grown := maxLoad * math.Exp2(float64(b-1)) // keys at the moment of doubling
	if moved := 2 * (float64(n) - grown); moved < math.Exp2(float64(b-1)) {
		total += buckets(int(grown), b-1, bucket)
	}
	return total
}

func buckets(n, b, bucket int) int64 {
	count := 1 << b
	array, spare := count, 0
	if b >= 4 {
		// What rounding to the size class adds becomes spare buckets as well.
		array = int(Scan((count+count/16)*bucket)) / bucket
		spare = array - count
	}
	mean := float64(n) / float64(count)
	overflow, p, sum := 0.0, math.Exp(-mean), 0.0
	for k := 0; k < 64; k++ {
		sum += p // P(keys in a bucket <= k)
		if k >= 8 && k%8 == 0 {
			overflow += 1 - sum
		}
		p *= mean / float64(k+1)
	}
	extra := overflow*float64(count) - float64(spare)
	if extra < 0 {
		extra = 0
	}
	return Scan(array*bucket) + int64(extra*float64(Scan(bucket)))
}
