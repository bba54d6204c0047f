package memtrace

import (
	"runtime"
	"sync"
)

// sentinel is garbage as soon as it is made: its finalizer runs after each collection
// and makes it live for another one. The pointer keeps it out of the allocator of
// tiny objects, which delays finalizers.
type sentinel struct {
	self *sentinel
	f    func()
	stop *stopFlag
}

type stopFlag struct {
	mu      sync.Mutex
	stopped bool
}

// onEachCollection calls f soon after garbage collections, at most once after each,
// on the goroutine that runs all finalizers of the program: f must be quick. When
// finalizers are busy, several collections may give one call.
func onEachCollection(f func()) (stop func()) {
	flag := new(stopFlag)
	arm(&sentinel{f: f, stop: flag})
	return func() {
		flag.mu.Lock()
		defer flag.mu.Unlock()
		flag.stopped = true
	}
}

func arm(s *sentinel) {
	runtime.SetFinalizer(s, func(s *sentinel) {
		s.stop.mu.Lock()
		defer s.stop.mu.Unlock()
		if !s.stop.stopped {
			s.f()
			arm(s)
		}
	})
}
