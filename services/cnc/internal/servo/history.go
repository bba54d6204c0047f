package servo

import (
	"sync"
	"unsafe"

	"cnc/internal/fault"
	"cnc/internal/heapsize"
	"cnc/internal/interp"
)

// Sample is one record of the drives.
type Sample struct {
	Time      int64 // ns since 1970
	Position  interp.Vec
	Velocity  interp.Vec
	Following interp.Vec
	Current   interp.Vec // A
	Bus       float64    // V
	Line      int64
}

// SampleBytes is the heap space of a sample.
var SampleBytes = heapsize.NoScan(int(unsafe.Sizeof(Sample{})))

// History keeps the last samples for diagnosis after a crash of the tool.
type History struct {
	mu      sync.Mutex
	samples []*Sample
	limit   int
	fault   *fault.Fault
}

// NewHistory keeps at least limit samples and a quarter more at most.
func NewHistory(limit int, f *fault.Fault) *History {
	h := &History{limit: limit, fault: f}
	f.SetBacking(fault.Slice, func() int64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return int64(cap(h.samples)) * 8
	})
	return h
}

// Record adds a sample.
func (h *History) Record(s Sample) {
	record := new(Sample)
	*record = s
	h.mu.Lock()
	defer h.mu.Unlock()
	h.samples = append(h.samples, record)
	if h.fault.Active(fault.Slice) {
		h.fault.Leaked(SampleBytes, 1)
		return
	}
	if len(h.samples) >= h.limit+h.limit/4 {
		// Trim in place and clear the rest, or the array would keep the old
		// samples alive.
		n := copy(h.samples, h.samples[len(h.samples)-h.limit:])
		for i := n; i < len(h.samples); i++ {
			h.samples[i] = nil
		}
		h.samples = h.samples[:n]
	}
}

// Len returns the number of samples that are kept.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.samples)
}

// Last returns up to n of the latest samples, oldest first.
func (h *History) Last(n int) []Sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	n = min(n, len(h.samples))
	out := make([]Sample, 0, n)
	for _, s := range h.samples[len(h.samples)-n:] {
		out = append(out, *s)
	}
	return out
}
