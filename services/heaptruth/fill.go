package main

import (
	"fmt"
	"runtime"
)

// Session, Item and Order are what a service of everyday holds: objects of about 100 bytes, in
// maps, slices and strings.
type Session struct {
	ID      uint64
	User    string
	Attrs   map[string]string
	Items   []*Item
	Last    *Order
	Flags   [6]uint64
	Partner *Session
}

// Item see [Session].
type Item struct {
	Name  string
	Price float64
	Owner *Session
	Tags  []string
	More  any
	Pad   [5]uint64
}

// Order see [Session].
type Order struct {
	Number uint64
	Lines  []Line
	Before *Order
	Pad    [4]uint64
}

// Line see [Session].
type Line struct {
	Item  *Item
	Count int
}

var (
	sessions     []*Session
	sessionsByID map[uint64]*Session
)

// fill makes a heap of about that many bytes.
func fill(bytes uint64) {
	if bytes == 0 {
		return
	}
	sessionsByID = map[uint64]*Session{}
	random := uint64(88172645463325252)
	next := func(n int) int {
		random ^= random << 13
		random ^= random >> 7
		random ^= random << 17
		return int(random % uint64(n))
	}
	var before *Session
	for number := uint64(0); ; number++ {
		if number%1000 == 0 {
			// What lives, not what waits for the collector, which is off.
			if number%64000 == 0 && number > 0 {
				runtime.GC()
			}
			runtime.ReadMemStats(&stats)
			if stats.HeapAlloc >= bytes {
				runtime.GC()
				runtime.ReadMemStats(&stats)
			}
			if stats.HeapAlloc >= bytes {
				return
			}
		}
		s := &Session{ID: number, User: fmt.Sprintf("user number %d", number), Partner: before}
		if next(8) == 0 {
			s.Attrs = map[string]string{}
			for i := next(12); i >= 0; i-- {
				s.Attrs[fmt.Sprintf("attribute %d", i)] = fmt.Sprintf("%d", next(1000000))
			}
		}
		s.Items = make([]*Item, 1+next(8))
		for i := range s.Items {
			s.Items[i] = &Item{Name: fmt.Sprintf("item %d of %d", i, number), Owner: s}
			switch next(6) {
			case 0:
				s.Items[i].Tags = []string{s.User, fmt.Sprintf("tag %d", next(50))}
			case 1:
				s.Items[i].More = make([]byte, 16+next(1200))
			case 2:
				s.Items[i].More = &Order{Number: number}
			}
		}
		for i := next(3); i > 0; i-- {
			s.Last = &Order{Number: number, Before: s.Last, Lines: make([]Line, 1+next(6))}
			for j := range s.Last.Lines {
				s.Last.Lines[j].Item = s.Items[next(len(s.Items))]
			}
		}
		sessions = append(sessions, s)
		sessionsByID[number] = s
		before = nil
		if next(2) == 0 {
			before = s
		}
	}
}
