// Command lab reproduces the leak patterns of a CNC controller, measures what the
// mistake and each fix cost on this machine, and writes it down as Markdown.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"sort"
	"strings"
	"time"
)

// effort says how long the measurements take; 1 is for real figures.
type effort float64

func (e effort) time(d time.Duration) time.Duration { return time.Duration(float64(e) * float64(d)) }

func (e effort) count(n int) int { return max(1, int(float64(e)*float64(n))) }

func main() {
	out := flag.String("o", "", "write to this `file` instead of stdout")
	flag.Parse()
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(out string) error {
	var page bytes.Buffer
	if err := write(&page, 1); err != nil {
		return err
	}
	if out == "" {
		_, err := os.Stdout.Write(page.Bytes())
		return err
	}
	return os.WriteFile(out, page.Bytes(), 0o644)
}

func write(w io.Writer, e effort) error {
	began := time.Now()
	var parts bytes.Buffer
	for _, part := range []func(io.Writer, effort) error{writeTasks, writeGoroutines, writePool, writeKeys, writeRelease} {
		if err := part(&parts, e); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, `# Leak patterns of a CNC controller, measured

Written by `+"`go run ./lab -o LAB.md`"+` in services/cnc; %s, %.0f s, %s, %s/%s, %s, %d cores, cgo %s.
Each part names what was claimed in the document that this project implements, and what
was measured here. Latencies depend on the machine; sizes, counts and correctness do not.
`, began.UTC().Format("2006-01-02 15:04 UTC"), time.Since(began).Seconds(),
		runtime.Version(), runtime.GOOS, runtime.GOARCH, processor(), runtime.NumCPU(), cgo)
	_, err := w.Write(parts.Bytes())
	return err
}

func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for _, line := range strings.Split(string(text), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// table writes a Markdown table; the first row is its head.
func table(w io.Writer, rows ...[]string) {
	fmt.Fprintln(w)
	for i, row := range rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintln(w, strings.Repeat("|---", len(row))+"|")
		}
	}
	fmt.Fprintln(w)
}

// nanos writes a time in ns with three digits.
func nanos(ns float64) string {
	switch {
	case ns < 0.5:
		return "0"
	case ns < 1e3:
		return fmt.Sprintf("%.0f ns", ns)
	case ns < 1e6:
		return fmt.Sprintf("%.3g µs", ns/1e3)
	case ns < 1e9:
		return fmt.Sprintf("%.3g ms", ns/1e6)
	}
	return fmt.Sprintf("%.3g s", ns/1e9)
}

func size(bytes float64) string {
	switch {
	case bytes < 1024:
		return fmt.Sprintf("%.0f B", bytes)
	case bytes < 1<<20:
		return fmt.Sprintf("%.1f KiB", bytes/1024)
	}
	return fmt.Sprintf("%.1f MiB", bytes/(1<<20))
}

// latencies are times in ns.
type latencies []int64

func (l latencies) sort() { sort.Slice(l, func(i, k int) bool { return l[i] < l[k] }) }

func (l latencies) mean() float64 {
	if len(l) == 0 {
		return 0
	}
	sum := 0.0
	for _, v := range l {
		sum += float64(v)
	}
	return sum / float64(len(l))
}

// quantile needs sorted latencies.
func (l latencies) quantile(q float64) float64 {
	if len(l) == 0 {
		return 0
	}
	return float64(l[int(q*float64(len(l)-1))])
}

// cost is what one call takes.
type cost struct {
	ns, bytes, allocs float64
}

// measure calls f n times and returns the cost of a call.
func measure(n int, f func()) cost {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	for i := 0; i < n; i++ {
		f()
	}
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	return cost{
		float64(took.Nanoseconds()) / float64(n),
		float64(after.TotalAlloc-before.TotalAlloc) / float64(n),
		float64(after.Mallocs-before.Mallocs) / float64(n),
	}
}
