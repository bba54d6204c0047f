// Package events tells interested parts of the service what happened to jobs.
package events

import (
	"sync"
)

// Event is the end of some jobs.
type Event struct {
	Jobs []string
}

// Bus calls its listeners, in the goroutine of the publisher.
type Bus struct {
	mu        sync.Mutex
	listeners []listener
	next      uint64
}

type listener struct {
	id uint64
	fn func(Event)
}

// Subscribe registers fn until the returned function is called. Whatever fn
// captures lives as long.
func (b *Bus) Subscribe(fn func(Event)) (unsubscribe func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	id := b.next
	b.listeners = append(b.listeners, listener{id, fn})
	return func() { b.remove(id) }
}

func (b *Bus) remove(id uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.listeners {
		if b.listeners[i].id == id {
			last := len(b.listeners) - 1
			copy(b.listeners[i:], b.listeners[i+1:])
			b.listeners[last] = listener{}
			b.listeners = b.listeners[:last]
			return
		}
	}
}

// Publish tells all listeners. They may unsubscribe while they are called.
func (b *Bus) Publish(e Event) {
	b.mu.Lock()
	now := append([]listener(nil), b.listeners...)
	b.mu.Unlock()
	for _, l := range now {
		l.fn(e)
	}
}

// Len returns the number of listeners.
func (b *Bus) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.listeners)
}

// Backing returns the bytes of the list itself.
func (b *Bus) Backing() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int64(cap(b.listeners)) * 16
}

// Has reports whether a job is among those that ended.
func (e Event) Has(job string) bool {
	for _, j := range e.Jobs {
		if j == job {
			return true
		}
	}
	return false
}
