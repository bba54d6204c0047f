package servo

import (
	"math/bits"
	"sync/atomic"
)

// jitter is a histogram of times in ns with 16 buckets to the doubling, so that a
// quantile is off by 6 % at most. One goroutine records, any may read.
type jitter struct {
	counts [60 * 16]atomic.Uint64
	count  atomic.Uint64
	sum    atomic.Uint64
	max    atomic.Uint64
}

func bucketOf(ns uint64) int {
	if ns < 16 {
		return int(ns)
	}
	shift := bits.Len64(ns) - 5
	return (shift+1)*16 + int(ns>>shift) - 16
}

// bucketTop is the largest value of a bucket.
func bucketTop(i int) uint64 {
	if i < 16 {
		return uint64(i)
	}
	shift := i/16 - 1
	return uint64(i%16+17)<<shift - 1
}

func (j *jitter) record(ns uint64) {
	i := bucketOf(ns)
	if i >= len(j.counts) {
		i = len(j.counts) - 1
	}
	j.counts[i].Add(1)
	j.sum.Add(ns)
	if ns > j.max.Load() {
		j.max.Store(ns)
	}
	j.count.Add(1)
}

// JitterStats describes |actual - deadline| of the control loop, in ns.
type JitterStats struct {
	Count   uint64      `json:"count"`
	Mean    float64     `json:"mean"`
	P50     uint64      `json:"p50"`
	P99     uint64      `json:"p99"`
	P999    uint64      `json:"p99_9"`
	Max     uint64      `json:"max"`
	Buckets [][2]uint64 `json:"buckets"` // largest value of the bucket, count; empty ones are left out
}

func (j *jitter) stats() JitterStats {
	var counts [len(j.counts)]uint64
	s := JitterStats{Max: j.max.Load(), Buckets: [][2]uint64{}}
	for i := range counts {
		if counts[i] = j.counts[i].Load(); counts[i] > 0 {
			s.Count += counts[i]
			s.Buckets = append(s.Buckets, [2]uint64{bucketTop(i), counts[i]})
		}
	}
	if s.Count == 0 {
		return s
	}
	s.Mean = float64(j.sum.Load()) / float64(s.Count)
	quantile := func(q float64) uint64 {
		rank, seen := uint64(q*float64(s.Count-1)), uint64(0)
		for i, c := range counts {
			if seen += c; c > 0 && seen > rank {
				return min(bucketTop(i), s.Max)
			}
		}
		return s.Max
	}
	s.P50, s.P99, s.P999 = quantile(0.5), quantile(0.99), quantile(0.999)
	return s
}
