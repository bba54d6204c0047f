package memtrace

import (
	"fmt"
	"hash/maphash"
	"math"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"unsafe"
)

// allocations compares successive readings of the runtime's heap profile.
type allocations struct {
	records []runtime.MemProfileRecord
	// What each bucket of the profiler had seen at the last reading, by the hash of its
	// stack and object size.
	seen  map[uint64]sampledStack
	seed  maphash.Seed
	round uint32
}

// sampledStack is what all records of one stack and object size say together: the runtime
// tells only 32 frames of a stack, so that several of its own buckets may look alike.
type sampledStack struct {
	told, now counts
	round     uint32 // of now
	record    int    // one of them
}

type counts struct{ objects, bytes int64 }

// site is a stack that allocated, scaled up to what it stands for.
type site struct {
	stack    [32]uintptr // leaf first, zero-terminated when shorter
	bytes    float64
	variance float64 // of bytes, bytes²
}

func newAllocations() *allocations {
	a := &allocations{seen: make(map[uint64]sampledStack), seed: maphash.MakeSeed()}
	a.since(math.MaxInt64)
	return a
}

// since returns the stacks that allocated more than least bytes since the last call,
// the largest first. It allocates only for stacks that are new or reported.
func (a *allocations) since(least int64) []site {
	n, ok := runtime.MemProfile(a.records[:cap(a.records)], true)
	for !ok {
		a.records = make([]runtime.MemProfileRecord, n+n/4+64)
		n, ok = runtime.MemProfile(a.records, true)
	}
	a.round++
	for i := range a.records[:n] {
		r := &a.records[:n][i]
		if r.AllocObjects <= 0 {
			continue
		}
		key := a.bucket(r)
		b := a.seen[key]
		if b.round != a.round {
			b.now, b.round, b.record = counts{}, a.round, i
		}
		b.now.objects += r.AllocObjects
		b.now.bytes += r.AllocBytes
		a.seen[key] = b
	}
	var found map[[32]uintptr]*site
	for key, b := range a.seen {
		if b.round != a.round || b.now == b.told {
			continue
		}
		r := &a.records[b.record]
		objects, bytes := b.now.objects-b.told.objects, b.now.bytes-b.told.bytes
		b.told = b.now
		a.seen[key] = b
		if objects <= 0 || bytes <= 0 || least == math.MaxInt64 {
			continue
		}
		if found == nil {
			found = make(map[[32]uintptr]*site)
		}
		s := found[r.Stack0]
		if s == nil {
			s = &site{stack: r.Stack0}
			found[r.Stack0] = s
		}
		// Each sampled object stands for 1/p of its size.
		size := float64(bytes) / float64(objects)
		p := sampledShare(size)
		s.bytes += float64(bytes) / p
		s.variance += float64(objects) * (1 - p) * size * size / (p * p)
	}
	var sites []site
	for _, s := range found {
		if s.bytes > float64(least) {
			sites = append(sites, *s)
		}
	}
	sort.Slice(sites, func(i, j int) bool { return sites[i].bytes > sites[j].bytes })
	return sites
}

// bucket identifies the profiler's bucket of a record: a stack and an object size.
func (a *allocations) bucket(r *runtime.MemProfileRecord) uint64 {
	var h maphash.Hash
	h.SetSeed(a.seed)
	_, _ = h.Write(unsafe.Slice((*byte)(unsafe.Pointer(&r.Stack0)), unsafe.Sizeof(r.Stack0)))
	size := r.AllocBytes / r.AllocObjects
	_, _ = h.Write(unsafe.Slice((*byte)(unsafe.Pointer(&size)), unsafe.Sizeof(size)))
	return h.Sum64()
}

// sampledShare is the probability with which an object of this size is sampled.
func sampledShare(size float64) float64 {
	rate := float64(runtime.MemProfileRate)
	if rate <= 1 || size <= 0 {
		return 1
	}
	return -math.Expm1(-size / rate)
}

// line renders a site as the document of this project does.
func (s *site) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ALLOCATED %s", size(s.bytes))
	if sd := math.Sqrt(s.variance); sd > 0.1*s.bytes {
		fmt.Fprintf(&b, " ±%s", size(sd))
	}
	culprit, tag := s.culprit()
	fmt.Fprintf(&b, " @ %s", where(culprit.Function, culprit.File, culprit.Line))
	if tag != "" {
		fmt.Fprintf(&b, " tag=%s", tag)
	}
	return b.String()
}

// each calls f for every frame, the leaf first, until it returns false.
func (s *site) each(f func(runtime.Frame) bool) {
	n := 0
	for n < len(s.stack) && s.stack[n] != 0 {
		n++
	}
	if n == 0 {
		return
	}
	frames := runtime.CallersFrames(s.stack[:n])
	for {
		frame, more := frames.Next()
		if !f(frame) || !more {
			return
		}
	}
}

// culprit returns the first frame outside of the runtime and the standard library,
// the leaf where there is none, and the innermost tag, empty without one.
func (s *site) culprit() (culprit runtime.Frame, tag string) {
	found, low := false, -1
	s.each(func(f runtime.Frame) bool {
		if culprit.Function == "" {
			culprit = f
		}
		if !found && !isStandard(f.Function) && !isOurs(f.Function) {
			culprit, found = f, true
		}
		switch kind, digit := tagFrame(f.Function); {
		case kind == lowFrame:
			low = digit
		case kind == highFrame && low >= 0:
			tag = tagName(digit<<6 | low)
		}
		return tag == ""
	})
	return culprit, tag
}

func (s *site) frames() (lines []string) {
	s.each(func(f runtime.Frame) bool {
		lines = append(lines, where(f.Function, f.File, f.Line))
		return true
	})
	return lines
}

func where(function, file string, line int) string {
	return fmt.Sprintf("%s (%s:%d)", function, filepath.Base(file), line)
}

// packageOf cuts a function's name down to the path of its package.
func packageOf(function string) string {
	slash := strings.LastIndexByte(function, '/') + 1
	if dot := strings.IndexByte(function[slash:], '.'); dot >= 0 {
		return function[:slash+dot]
	}
	return function
}

// ourPackage is the path of this package, wherever a program has vendored it.
var ourPackage = func() string {
	pc, _, _, _ := runtime.Caller(0)
	return packageOf(runtime.FuncForPC(pc).Name())
}()

// isOurs reports whether a function belongs to this package.
func isOurs(function string) bool {
	rest, ok := strings.CutPrefix(function, ourPackage)
	return ok && strings.HasPrefix(rest, ".")
}

// The kinds of frames that Do puts on the stack.
const (
	noFrame = iota
	highFrame
	lowFrame
)

// tagFrame reads the name of a frame of Do: its kind, and which of the 64 it is.
func tagFrame(function string) (kind, digit int) {
	name, ok := strings.CutPrefix(function, ourPackage)
	if !ok || len(name) != len(".tagHi00") {
		return noFrame, 0
	}
	tens, ones := int(name[6])-'0', int(name[7])-'0'
	if tens < 0 || tens > 6 || ones < 0 || ones > 9 || tens*10+ones > 63 {
		return noFrame, 0
	}
	switch name[:6] {
	case ".tagHi":
		return highFrame, tens*10 + ones
	case ".tagLo":
		return lowFrame, tens*10 + ones
	}
	return noFrame, 0
}

// mainModule is the path of the module that the program is built from, empty when the
// program does not tell.
var mainModule = sync.OnceValue(func() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Path
	}
	return ""
})

// standardRoots are the first elements of the standard library's package paths.
const standardRoots = " archive bufio bytes cmp compress container context crypto database debug embed encoding errors " +
	"expvar flag fmt go hash html image index internal io iter log maps math mime net os path plugin reflect regexp " +
	"runtime slices sort strconv strings structs sync syscall testing text time type unicode unique unsafe vendor weak "

// isStandard reports whether a function belongs to the runtime or the standard library.
func isStandard(function string) bool {
	pkg := packageOf(function)
	if own := mainModule(); own != "" && (pkg == own || strings.HasPrefix(pkg, own+"/")) {
		return false
	}
	root, _, _ := strings.Cut(pkg, "/")
	return strings.Contains(standardRoots, " "+root+" ")
}
