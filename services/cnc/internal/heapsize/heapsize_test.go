package heapsize

import (
	"math"
	"runtime"
	"strconv"
	"testing"
)

// heapGrowth returns what f makes the heap grow by.
func heapGrowth(f func() any) float64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	keep := f()
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(keep)
	return float64(after.HeapAlloc) - float64(before.HeapAlloc)
}

type pointers struct{ p [75]*int } // 600 bytes

func TestSizes(t *testing.T) {
	for _, size := range []int{16, 33, 112, 500, 600, 1025, 8193, 16384} {
		size, n := size, max(1000, 4<<20/size) // what the runtime itself allocates must not matter
		list := make([][]byte, n)
		got := heapGrowth(func() any {
			for i := range list {
				list[i] = make([]byte, size)
			}
			return list
		})
		if want := float64(n) * float64(NoScan(size)); math.Abs(got/want-1) > 0.02 {
			t.Errorf("%d bytes without pointers: %.0f, want %.0f", size, got/float64(n), want/float64(n))
		}
		runtime.KeepAlive(list)
	}
	const n = 8000
	list := make([]*pointers, n)
	got := heapGrowth(func() any {
		for i := range list {
			list[i] = new(pointers)
		}
		return list
	})
	if want := float64(n) * float64(Scan(600)); math.Abs(got/want-1) > 0.02 {
		t.Errorf("600 bytes with pointers: %.0f, want %.0f", got/n, want/n)
	}
	if NoScan(0) != 0 || NoScan(32769) != 40960 || NoScan(32768) != 32768 {
		t.Error("the largest classes are wrong")
	}
}

func TestMap(t *testing.T) {
	for _, n := range []int{300, 2000, 5000, 20000, 40000, 60000, 90000, 130000, 200000, 300000} {
		keys := make([]string, n)
		for i := range keys {
			keys[i] = strconv.Itoa(i)
		}
		maps := make([]map[string]*int, max(1, 1<<20/(40*n))) // as above
		got := heapGrowth(func() any {
			for i := range maps {
				maps[i] = make(map[string]*int)
				for _, k := range keys {
					maps[i][k] = nil
				}
			}
			return maps
		}) / float64(len(maps))
		runtime.KeepAlive(maps)
		runtime.KeepAlive(keys)
		want := float64(Map(n, 16, 8))
		t.Logf("%d: %.0f, expected %.0f (%+.1f %%), %.1f an entry", n, got, want, 100*(want/got-1), got/float64(n))
		if math.Abs(want/got-1) > 0.06 {
			t.Errorf("map of %d: %.0f bytes, expected %.0f", n, got, want)
		}
	}
}
