package memtrace

import (
	"fmt"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// WatchMap lets a person who asks for it (`memtrace watch --with-strings`) see some keys
// of a map that is found to grow without bound: equal inputs that are spelt differently
// are seen at a glance. owner is the type or function that fills the map, as stacks name
// it, such as "cnc/internal/gcode.(*Cache)". sample returns up to n keys and the number of
// all; it runs on a goroutine of its own, takes the lock of the map itself, and should be
// quick ([Keys] is). Nothing is called, and no key leaves the process, until asked for.
func WatchMap(owner string, sample func(n int) (keys []string, size int)) (forget func()) {
	watched.Lock()
	defer watched.Unlock()
	w := &watchedMap{owner: owner, sample: sample}
	if watched.maps == nil {
		watched.maps = make(map[*watchedMap]struct{})
	}
	watched.maps[w] = struct{}{}
	return func() {
		watched.Lock()
		defer watched.Unlock()
		delete(watched.maps, w)
	}
}

// Keys returns up to n keys of a map as text, and its size, as a sample for [WatchMap].
// Go visits a map from a random place: it is a sample, not always the same keys.
func Keys[K comparable, V any](m map[K]V, n int) (keys []string, size int) {
	for key := range m {
		if len(keys) >= n {
			break
		}
		keys = append(keys, fmt.Sprint(key))
	}
	return keys, len(m)
}

type watchedMap struct {
	owner  string
	sample func(n int) ([]string, int)
	busy   bool // a sample that has not returned yet
}

var watched struct {
	sync.Mutex
	maps map[*watchedMap]struct{}
}

const (
	maxKeys = 32
	// maxKeyLen cuts longer keys, bytes.
	maxKeyLen = 128
)

// keyPatience is how long samples may wait for the locks of their maps; a variable for
// the tests.
var keyPatience = time.Second

// keyPage is what /debug/memtrace/keys answers.
type keyPage struct {
	Schema string      `json:"schema"`
	Maps   []keySample `json:"maps"`
}

type keySample struct {
	Owner string   `json:"owner"`
	Size  int      `json:"size"`
	Keys  []string `json:"keys"`
}

func serveKeys(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.Query().Get("n"))
	if err != nil || n < 1 || n > maxKeys {
		http.Error(w, "n must be from 1 to "+strconv.Itoa(maxKeys), http.StatusBadRequest)
		return
	}
	page := keyPage{"memtrace.keys/1", []keySample{}}
	late := time.After(keyPatience)
	for _, m := range idleMaps() {
		done := make(chan keySample, 1) // room for one: what comes late is dropped
		go m.take(n, done)
		select {
		case s := <-done:
			page.Maps = append(page.Maps, s)
		case <-late:
			// The others are asked next time.
			answer(w, page)
			return
		}
	}
	sort.Slice(page.Maps, func(i, j int) bool { return page.Maps[i].Owner < page.Maps[j].Owner })
	answer(w, page)
}

// idleMaps returns the maps that are not being sampled.
func idleMaps() []*watchedMap {
	watched.Lock()
	defer watched.Unlock()
	var idle []*watchedMap
	for m := range watched.maps {
		if !m.busy {
			idle = append(idle, m)
		}
	}
	return idle
}

// take samples one map, unless a sample of it has not come back yet.
func (m *watchedMap) take(n int, done chan<- keySample) {
	s := keySample{Owner: m.owner, Keys: []string{}}
	if !m.begin() {
		done <- s
		return
	}
	// A mistake in the service's own function must not end the service.
	defer func() {
		if recover() != nil {
			s.Keys = []string{}
		}
		m.end()
		done <- s
	}()
	var keys []string
	keys, s.Size = m.sample(n)
	for _, key := range keys[:min(n, len(keys))] {
		s.Keys = append(s.Keys, strings.ToValidUTF8(key[:min(len(key), maxKeyLen)], "?"))
	}
}

func (m *watchedMap) begin() bool {
	watched.Lock()
	defer watched.Unlock()
	began := !m.busy
	m.busy = true
	return began
}

func (m *watchedMap) end() {
	watched.Lock()
	defer watched.Unlock()
	m.busy = false
}
