//go:build go1.24

package main

import (
	"runtime"

	"cnc/internal/servo"
)

var cleanups = []release{{"`runtime.AddCleanup`", func(r *releases) error {
	memory, err := servo.AllocateDMA(servo.DMABytes)
	if err != nil {
		return err
	}
	memory[0] = 1
	ticket := r.take()
	runtime.AddCleanup(&buffer{memory: memory}, func(memory []byte) {
		servo.FreeDMA(memory)
		r.released(ticket)
	}, memory)
	return nil
}}}
