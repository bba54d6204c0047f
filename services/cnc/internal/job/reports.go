package job

import (
	"fmt"
	"sync"
	"time"
	"unsafe"

	"cnc/internal/fault"
	"cnc/internal/heapsize"
)

// Report is the detailed result of a job, for the host to fetch.
type Report struct {
	Job      string
	Program  string
	Blocks   int
	Seconds  float64 // of motion
	Worst    float64 // largest following error, mm
	Finished time.Time
	Log      []byte
}

// LogBytes is the size of the log of a report.
const LogBytes = 8 << 10

// reportBytes is what one report keeps on the heap: itself, its log and name, and
// its place in the sync.Map (a boxed key and value and a node; what the map's inner
// levels need beyond that is an average).
var reportBytes = heapsize.Scan(int(unsafe.Sizeof(Report{}))) + heapsize.NoScan(LogBytes) +
	heapsize.NoScan(16) + heapsize.Scan(16) + 130

// Reports keeps the reports of finished jobs for a while, by the job's name.
//
// It is a sync.Map because the hosts poll while jobs end. A sync.Map forgets
// nothing by itself: each report is queued for deletion when it is published. With
// fault.SyncMap active it is not.
type Reports struct {
	byJob  sync.Map // string -> *Report
	keep   time.Duration
	fault  *fault.Fault
	mu     sync.Mutex
	expiry []expiry // oldest first
}

type expiry struct {
	at  time.Time
	job string
}

// NewReports keeps each report for a time.
func NewReports(keep time.Duration, f *fault.Fault) *Reports {
	return &Reports{keep: keep, fault: f}
}

// Publish makes the report of a finished job available.
func (r *Reports) Publish(jobID, program string, blocks int, seconds, worst float64) {
	report := newReport(jobID, program, blocks, seconds, worst)
	r.byJob.Store(jobID, report)
	if r.fault.Active(fault.SyncMap) {
		r.fault.Leaked(reportBytes, 5)
		return
	}
	r.mu.Lock()
	r.expiry = append(r.expiry, expiry{report.Finished.Add(r.keep), jobID})
	r.mu.Unlock()
}

func newReport(jobID, program string, blocks int, seconds, worst float64) *Report {
	report := &Report{
		Job: jobID, Program: program, Blocks: blocks, Seconds: seconds, Worst: worst,
		Finished: time.Now(), Log: make([]byte, LogBytes),
	}
	n := copy(report.Log, fmt.Sprintf("%s %s: %d blocks, %.3f s, following error %.4f mm\n",
		jobID, program, blocks, seconds, worst))
	for i := n; i < len(report.Log); i++ {
		report.Log[i] = ' '
	}
	return report
}

// Get returns the report of a job, or nil.
func (r *Reports) Get(jobID string) *Report {
	if v, ok := r.byJob.Load(jobID); ok {
		return v.(*Report)
	}
	return nil
}

// Expire deletes the reports whose time is over.
func (r *Reports) Expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(r.expiry) && !r.expiry[n].at.After(now) {
		r.byJob.Delete(r.expiry[n].job)
		n++
	}
	// Copying down lets go of the names; the queue is a few seconds long.
	r.expiry = append(r.expiry[:0], r.expiry[n:]...)
}

// Len counts the reports.
func (r *Reports) Len() int {
	n := 0
	r.byJob.Range(func(any, any) bool { n++; return true })
	return n
}
